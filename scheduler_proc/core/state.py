"""What the parts of the scheduler share: the queue, the batch, the pages, the steps in flight.

    waiting ──prefill──► chunked (at most one) ──last chunk──► running ──results──► done
       ▲                                                          │
       └───────────────────────── retraction ─────────────────────┘

`by_generation` finds the request of a result row; an entry lives until the last row in flight is back.
"""

import collections
from dataclasses import dataclass, field

from quartet.wire.config import SchedulerConfig
from quartet.wire.ids import Epoch, Rid
from scheduler_proc.core.counters import SchedulerCounters
from scheduler_proc.core.delivery import Delivery
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.sizes import AUTO_CHUNK_CPU
from scheduler_proc.core.step_time_model import StepTimeModel

ENDED_KEPT = 1000
ENDED_BY_THEMSELVES = ("stop", "length", "stop_string")


PageWrite = tuple[int, int, int]
"""(slot, index, page): one entry of the worker's page table."""


@dataclass(slots=True)
class Outstanding:
    """A step issued whose result is not back: when, and what it holds, for the model of step times."""

    step: int
    issued_s: float
    features: list[float]


@dataclass(slots=True)
class State:
    """All mutable state of the scheduler. The lists hold each live request exactly once."""

    config: SchedulerConfig
    page_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    worker_name: str
    ratio: NewTokenRatio
    queue: WaitingQueue
    kv: KvCache
    delivery: Delivery
    counters: SchedulerCounters = field(default_factory=SchedulerCounters)
    requests: dict[Rid, dict[int, Request]] = field(default_factory=dict)
    chunked: Request | None = None
    running: dict[int, Request] = field(default_factory=dict)
    """By generation, in batch order."""
    by_generation: dict[int, Request] = field(default_factory=dict)
    outstanding: collections.deque[Outstanding] = field(default_factory=collections.deque)
    worker_epoch: Epoch | None = None
    lengths: LengthRules | None = None
    chunk_tokens: int = AUTO_CHUNK_CPU
    max_slots: int = 0
    free_slots: list[int] = field(default_factory=list)
    released_slots: list[int] = field(default_factory=list)
    page_writes: list[tuple[Request, int, int, int]] = field(default_factory=list)
    """(request, generation, index, page) for the next step's page table writes."""
    is_full: bool = False
    is_draining: bool = False
    ended: collections.deque[Request] = field(default_factory=lambda: collections.deque(maxlen=ENDED_KEPT))
    """The last requests that ended, newest last, for timelines."""
    finished_log: collections.deque[Request] | None = None
    """Requests that ended by themselves, until somebody takes them; None while nobody does."""
    ends_by_cause: collections.Counter[str] = field(default_factory=collections.Counter)
    step_time_model: StepTimeModel | None = None
    """Learns how long steps take, if a setting needs it."""
    last_result_s: float = 0.0
    step: int = 0
    generation: int = 0
    last_seq: int = 0
    now: float = 0.0

    def next_seq(self) -> int:
        """Return a new arrival number."""
        self.last_seq += 1
        return self.last_seq

    def live(self) -> list[Request]:
        """Return every request that has not ended."""
        return [request for choices in self.requests.values() for request in choices.values()]

    def end(self, request: Request, cause: str) -> None:
        """Take an ended request out of the index by name; its timeline is kept for a while."""
        choices = self.requests[request.rid]
        del choices[request.choice]
        if not choices:
            del self.requests[request.rid]
        request.timeline.on_ended(self.now, cause, len(request.output_ids))
        self.ends_by_cause[cause] += 1
        self.ended.append(request)
        if self.finished_log is not None and cause in ENDED_BY_THEMSELVES:
            self.finished_log.append(request)

    def note_step_time(self, done: Outstanding) -> None:
        """A result has come: the step took since it was issued, or since the one before it was done."""
        if self.step_time_model is not None:
            self.step_time_model.learn(done.features, self.now - max(done.issued_s, self.last_result_s))
        self.last_result_s = self.now

    def note_admission(self, request: Request, step: int, cached: int, length: int) -> None:
        """A request has got its slot: `cached` tokens come from the tree, `length` are computed first."""
        counters = self.counters
        if request.timeline.cached_tokens < 0:
            counters.cached_tokens += cached
            counters.input_tokens += request.total_tokens
        else:
            counters.recomputed_tokens += request.total_tokens - cached
        details = {
            "cached_tokens": cached,
            "first_chunk_tokens": length,
            "reserved_tokens": request.remaining_tokens,
            "ratio": round(self.ratio.current, 6),
        }
        request.timeline.on_admitted(self.now, step, cached, request.passes_waited, self.queue.stop_reasons, details)

    def take_slot(self, request: Request) -> None:
        """Give a request a slot and a generation; the caller has checked that one is free."""
        self.generation += 1
        request.slot = self.free_slots.pop()
        request.launched = len(request.output_ids)
        request.generation = self.generation
        self.by_generation[request.generation] = request

    def give_slot_back(self, request: Request) -> None:
        """Free a request's slot; the worker hears of it with the next step, before anybody enters it."""
        if request.slot >= 0:
            self.released_slots.append(request.slot)
            self.free_slots.append(request.slot)
            request.slot = -1
        if request.in_flight == 0:
            self.by_generation.pop(request.generation, None)

    def leave_batch(self, request: Request) -> None:
        """Take a request out of the running batch or the chunked place; admission may try again (ADM-11)."""
        if self.chunked is request:
            self.chunked = None
        self.running.pop(request.generation, None)
        self.is_full = False
