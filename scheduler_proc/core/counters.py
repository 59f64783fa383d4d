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
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class DecodeGaps:
    """The longest time between two decode steps while something decodes (MET-4)."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last_s = -1.0

    def on_decode(self, now: float) -> None:
        """A step with decode rows is issued."""
        if self._last_s >= 0:
            self.longest_s = max(self.longest_s, now - self._last_s)
        self._last_s = now

    def pause(self) -> None:
        """Nothing decodes, so the time until the next decode step is no gap."""
        self._last_s = -1.0
