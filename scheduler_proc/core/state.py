"""What the parts of the scheduler share: the queue, the batch, the pages, the steps in flight.

    waiting ──prefill──► chunked (at most one) ──last chunk──► running ──results──► done
       ▲                                                          │
       └───────────────────────── retraction ─────────────────────┘

`by_generation` finds the request of a result row; an entry lives until the last row in flight is back.
"""

from dataclasses import dataclass, field

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.counters import SchedulerCounters
from scheduler_proc.core.delivery import Delivery
from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lengths import LengthRules
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.ratio import NewTokenRatio
from scheduler_proc.core.request import Request
from scheduler_proc.core.request_table import RequestTable
from scheduler_proc.core.sizes import AUTO_CHUNK_CPU


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
    table: RequestTable
    counters: SchedulerCounters = field(default_factory=SchedulerCounters)
    lengths: LengthRules | None = None
    chunk_tokens: int = AUTO_CHUNK_CPU
    is_draining: bool = False
    now: float = 0.0

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
