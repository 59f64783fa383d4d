"""What the scheduler counts over its life. The names are those of the exported metrics (MET-2)."""

from dataclasses import dataclass


@dataclass(slots=True)
class SchedulerCounters:
    """Counts of events; a snapshot exports each field."""

    prefill_steps: int = 0
    decode_steps: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    input_tokens: int = 0
    recomputed_tokens: int = 0
    retractions: int = 0
    retracted_input_tokens: int = 0
    retracted_output_tokens: int = 0
    preemptions: int = 0
    worker_losses: int = 0
    wasted_rows: int = 0
