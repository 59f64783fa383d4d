"""The new-token ratio: what share of the running requests' remaining output is reserved (rules RAT-1 to RAT-5).

Source of the algorithm: SGLang's new_token_ratio_tracker.
"""

from collections.abc import Iterable

from quartet.wire.config import SchedulerConfig


def estimate_ratio(outputs: Iterable[tuple[int, int]], retract_decode_steps: int) -> float:
    """Return the ratio that fits requests given as (O, M) pairs (RAT-3); 0.0 for none. M is not clipped."""
    sum_output = sum_max = count = 0
    for output_tokens, max_new_tokens in outputs:
        sum_output += output_tokens
        sum_max += max_new_tokens
        count += 1
    if count == 0:
        return 0.0
    return min(1.0, (sum_output + retract_decode_steps * count) / (sum_max + 1))


class NewTokenRatio:
    """The current ratio. `current` is read by admission; it falls with each decode step and is re-estimated when
    requests are retracted."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.initial = min(config.init_new_token_ratio * config.schedule_conservativeness, 1.0)
        self.minimum = min(self.initial * config.min_new_token_ratio_factor, 1.0)
        by_steps = (self.initial - self.minimum) / config.new_token_ratio_decay_steps
        self.decay = config.new_token_ratio_decay or by_steps
        self.current = self.initial
        self._retract_decode_steps = config.retract_decode_steps

    def on_decode(self) -> None:
        """A pure decode step fitted without retraction: decay (RAT-2)."""
        self.current = max(self.current - self.decay, self.minimum)

    def on_retract(self, remaining: Iterable[tuple[int, int]]) -> None:
        """A step retracted; `remaining` are (O, M) of the requests that stay. With none left, keep (RAT-3, RAT-4)."""
        pairs = list(remaining)
        if pairs:
            self.current = estimate_ratio(pairs, self._retract_decode_steps)

    def on_idle(self) -> None:
        """Nothing runs, waits or is in flight: start again (RAT-5)."""
        self.current = self.initial
