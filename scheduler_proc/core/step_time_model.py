"""How long a step takes, learnt from the steps before it: what bounds a step by time (upgrade U1).

Steps of about the same size are averaged, and a cost is fitted to the averages: steps that all look alike, as those of
a steady load do, then leave the rest of the cost as it was, where a fit to the last steps would lose it. A factor
follows a device that has become slower or faster in all, between two fits.
"""

import math
from collections import OrderedDict

import msgspec

from scheduler_proc.core.step_cost import CostError, MeasuredStep, StepCost, StepLoad, fit_steps

MIN_STEPS_TO_TRUST = 8
MOST_SIZES = 64
"""Averages that are kept; the one that was not met for longest makes way."""
FIT_EVERY = 64
"""Steps from one fit to the next; the first fits follow more closely."""
WEIGHT = 0.1
"""Of a step in the average of those of its size."""
FACTOR_WEIGHT, MOST_FACTOR, CHANGE = 0.02, 10.0, 0.15
MOST_GROWTH = 2
"""A step that is to be bounded has at most so many times the prompt tokens that have been measured in one."""


class StepTimeModel:
    """Predicts the seconds of steps from their loads."""

    def __init__(self) -> None:
        self._cost: StepCost | None = None
        self._sizes: OrderedDict[tuple[int, int, int], MeasuredStep] = OrderedDict()
        self._factor = 1.0
        self._steps_seen = 0
        self._fit_due = MIN_STEPS_TO_TRUST
        self._most_prefill = 0
        self._met: set[tuple[int, int, int]] = set()

    @property
    def is_trusted(self) -> bool:
        """Say whether enough steps have been measured."""
        return self._cost is not None

    def learn(self, load: StepLoad, seconds: float) -> None:
        """Take the measured duration of one step."""
        if seconds <= 0:
            return
        self._steps_seen += 1
        self._most_prefill = max(self._most_prefill, int(load.prefill_tokens))
        if self._cost is not None:
            ratio = seconds / max(self._cost.seconds(load), 1e-9)
            self._factor += FACTOR_WEIGHT * (min(max(ratio, 1 / MOST_FACTOR), MOST_FACTOR) - self._factor)
        self._average(load, seconds)
        if self._steps_seen >= self._fit_due:
            self._fit()

    def predict(self, load: StepLoad) -> float:
        """Return the expected duration in seconds; 0 before anything is known."""
        return 0.0 if self._cost is None else self._factor * self._cost.seconds(load)

    def prefill_budget(self, target_s: float, rows: int, row_context: int, chunk_context: int) -> int:
        """Return how many prefill tokens fit beside the decode rows within `target_s`; 0 while too little is known.

        `chunk_context` is the context before the first of them."""
        if self._cost is None:
            return 0
        left_s = target_s - self.predict(StepLoad(0, 0, rows, row_context))
        token_s, pair_s = (self._factor * one for one in (self._cost.prefill_token_s, self._cost.attention_pair_s))
        # n tokens attend to n * chunk_context + n * n / 2 tokens: the positive root of their time less what is left.
        first_s, left_s = max(token_s + pair_s * chunk_context, 1e-9), max(left_s, 0.0)
        tokens = 2.0 * left_s / (first_s + math.sqrt(first_s * first_s + 2.0 * pair_s * left_s))
        return min(int(tokens), MOST_GROWTH * self._most_prefill)

    def _average(self, load: StepLoad, seconds: float) -> None:
        key = (_size(load.prefill_tokens), _size(load.decode_rows), _size(load.context_tokens))
        self._met.add(key)
        known = self._sizes.pop(key, None)
        if known is not None:
            old, new = 1.0 - WEIGHT, WEIGHT
            load = StepLoad(
                old * known.prefill_tokens + new * load.prefill_tokens,
                old * known.prefill_pairs + new * load.prefill_pairs,
                old * known.decode_rows + new * load.decode_rows,
                old * known.context_tokens + new * load.context_tokens,
            )
            seconds = old * known.seconds + new * seconds
        self._sizes[key] = MeasuredStep(
            load.prefill_tokens, load.prefill_pairs, load.decode_rows, load.context_tokens, seconds=seconds
        )
        if len(self._sizes) > MOST_SIZES:
            self._sizes.popitem(last=False)

    def _fit(self) -> None:
        self._fit_due = self._steps_seen + min(self._steps_seen, FIT_EVERY)
        if abs(self._factor - 1.0) > CHANGE:
            # The device as a whole has changed, so what was measured before is scaled like what was met since.
            for key, step in self._sizes.items():
                if key not in self._met:
                    self._sizes[key] = msgspec.structs.replace(step, seconds=step.seconds * self._factor)
        self._met.clear()
        try:
            self._cost = fit_steps(list(self._sizes.values()))
        except CostError:
            return
        self._factor = 1.0


def _size(count: float) -> int:
    return int(count).bit_length()
