"""How long a step takes, learnt from the steps before it: what bounds a decode_first step by time (upgrade U1).

A linear model of the step's content, fitted by recursive least squares that slowly forgets, so that it follows a
device that is shared or throttled.
"""

FORGETTING = 0.995
INITIAL_VARIANCE = 1e4
FEATURES = 5
MIN_STEPS_TO_TRUST = 8


class StepTimeModel:
    """A step's seconds as a weighted sum of: 1, decode rows, decode context / 1e4, prefill tokens / 1e3, prefill tokens
    times their context / 1e7."""

    def __init__(self) -> None:
        self._weights = [0.0] * FEATURES
        self._variance = [[INITIAL_VARIANCE if i == j else 0.0 for j in range(FEATURES)] for i in range(FEATURES)]
        self.steps_seen = 0

    @staticmethod
    def features(rows: int, row_context: int, prefill_tokens: int, prefill_context: int) -> list[float]:
        """Return the features of a step. Contexts are totals in tokens, for the prefill the mean of its chunks."""
        return [
            1.0,
            float(rows),
            row_context / 1e4,
            prefill_tokens / 1e3,
            prefill_tokens * prefill_context / 1e7,
        ]

    def learn(self, features: list[float], seconds: float) -> None:
        """Take the measured duration of one step."""
        variance = self._variance
        spread = [sum(row[j] * features[j] for j in range(FEATURES)) for row in variance]
        scale = FORGETTING + sum(features[i] * spread[i] for i in range(FEATURES))
        gain = [value / scale for value in spread]
        error = seconds - self.predict(features)
        self._weights = [weight + g * error for weight, g in zip(self._weights, gain, strict=True)]
        for i in range(FEATURES):
            for j in range(FEATURES):
                variance[i][j] = (variance[i][j] - gain[i] * spread[j]) / FORGETTING
        self.steps_seen += 1

    def predict(self, features: list[float]) -> float:
        """Return the expected duration in seconds."""
        return sum(weight * feature for weight, feature in zip(self._weights, features, strict=True))

    def trusted_budget(self, target_s: float, rows: int, row_context: int, prefill_context: int) -> int:
        """Return `prefill_budget`, or 0 while too few steps have been measured."""
        if self.steps_seen < MIN_STEPS_TO_TRUST:
            return 0
        return self.prefill_budget(target_s, rows, row_context, prefill_context)

    def prefill_budget(self, target_s: float, rows: int, row_context: int, prefill_context: int) -> int:
        """Return how many prefill tokens fit beside the decode rows within `target_s`; may be negative."""
        base_s = self.predict(self.features(rows, row_context, 0, 0))
        per_token_s = max(self._weights[3] / 1e3 + self._weights[4] * prefill_context / 1e7, 1e-9)
        return int((target_s - base_s) / per_token_s)
