"""What is noted when a request enters the batch: in its timeline, and in the counters. A rule without state."""

from scheduler_proc.core.counters import SchedulerCounters
from scheduler_proc.core.meters import PrefillMeter
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.request import Request
from scheduler_proc.core.step_work import PrefillBatch


def note_admission(
    request: Request,
    cached: int,
    length: int,
    pass_batch: PrefillBatch,
    queue: WaitingQueue,
    counters: SchedulerCounters,
    ratio: float,
) -> None:
    """Count an admission: `cached` tokens come from the tree, `length` are computed first."""
    timeline = request.timeline
    if timeline.cached_tokens < 0:
        counters.cached_tokens += cached
        counters.input_tokens += request.total_tokens
    else:
        counters.recomputed_tokens += request.total_tokens - cached
    details = {
        "cached_tokens": cached,
        "first_chunk_tokens": length,
        "reserved_tokens": request.remaining_tokens,
        "computed_meanwhile_tokens": queue.computed_tokens - request.processed_at_entry,
        "ratio": round(ratio, 6),
    }
    stop_reasons, waited = queue.stop_reasons, queue.passes_waited(request)
    # A replay's outputs may be cached, too; to its client they are no part of the prompt.
    of_prompt = min(cached, request.prompt_tokens)
    meter = request.prefill_meter = PrefillMeter()
    timeline.on_admitted(pass_batch.now, pass_batch.step, of_prompt, waited, stop_reasons, details, meter)
