"""What the parts of the scheduler share: the queue, the batch, the pages, the steps in flight.

    waiting ──prefill──► chunked (at most one) ──last chunk──► running ──results──► done
       ▲                                                          │
       └───────────────────────── retraction ─────────────────────┘

`by_generation` finds the request of a result row; an entry lives until the last row in flight is back.
"""

import collections
from dataclasses import dataclass, field

from quartet.wire.config import SchedulerConfig
from quartet.wire.ids import Rid
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.counters import SchedulerCounters
from scheduler_proc.core.delivery import Delivery
from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.sizes import AUTO_CHUNK_CPU

ENDED_KEPT = 1000
ENDED_BY_THEMSELVES = ("stop", "length", "stop_string")


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
    in_flight: StepsInFlight
    batch: Batch
    delivery: Delivery
    counters: SchedulerCounters = field(default_factory=SchedulerCounters)
    requests: dict[Rid, dict[int, Request]] = field(default_factory=dict)
    lengths: LengthRules | None = None
    chunk_tokens: int = AUTO_CHUNK_CPU
    is_draining: bool = False
    ended: collections.deque[Request] = field(default_factory=lambda: collections.deque(maxlen=ENDED_KEPT))
    """The last requests that ended, newest last, for timelines."""
    finished_log: collections.deque[Request] | None = None
    """Requests that ended by themselves, until somebody takes them; None while nobody does."""
    ends_by_cause: collections.Counter[str] = field(default_factory=collections.Counter)
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
