"""Which steps rows take part in, and how much prompt goes beside them, when rows have a promise to keep (upgrade U1).

The promise: a row has its next token within `target_s` of its last, but for one gap in a hundred. Until then the row
has slack, which prompts may use: a step is filled with prompt until its predicted end is the moment at which its rows
are due. Where more prompt waits than one step can take, the gaps that the promise leaves free are spent: steps of
prompt alone run until the prompts are computed, and each row has one long gap.

Source: FairBatching (arXiv 2510.14392), which forms a batch from the slack of its rows by a fitted step time. There the
slack of a stream is counted from its first token; here from its last, so that a pause is bounded, too.
"""

from typing import NamedTuple

from scheduler_proc.core.step_cost import StepLoad
from scheduler_proc.core.step_time_model import StepTimeModel

LONG_GAPS = 0.009
"""The share of gaps that may be long; the promise is 0.01."""
MOST_CREDIT = 4.0
"""Long gaps that each row may have saved up."""
LONGEST_STALL = 20
"""The longest of them, in multiples of the target."""
LEAST_WORTH, MOST_WORTH = 2.0, 1000.0
"""Bounds of how many steps, filled up to the target, a backlog has to take before rows stand still for it. Within them
the price rises by DEARER with each step that finds no credit, and falls by CHEAPER while there is some."""
DEARER, CHEAPER = 1.02, 0.99
MARGIN, MOST_MARGIN = 0.02, 0.5
"""Bounds of what is kept between the predicted end of a step and the time when its rows are due, in targets."""
MARGIN_STEP, LATE_SHARE = 0.05, 0.002
"""The margin follows the errors of the prediction so that about LATE_SHARE of the steps end after it."""
LEAST_SHARE = 0.2
"""Prompts have at least this share of the target: where rows alone take all of it, it cannot be kept."""


class StepPlan(NamedTuple):
    """Whether rows take part in the next step, and the most prompt tokens in it (None: a whole chunk)."""

    has_rows: bool
    token_cap: int | None


class Slack:
    """Plans the steps of one batch of rows, which all decode together.

    Args:
        target_s: promised time between two tokens.
        model: how long a step takes.
    """

    def __init__(self, target_s: float, model: StepTimeModel) -> None:
        self._target_s = target_s
        self._model = model
        self._last_s: float | None = None
        self._credit = 0.0
        self._worth = LEAST_WORTH
        self._is_stalling = False
        self._margin_s = MARGIN * target_s

    def plan(
        self, rows: int, row_context: int, chunk_context: int, backlog_tokens: int, end_s: float, is_fresh: bool
    ) -> StepPlan:
        """Plan the next step.

        Args:
            rows, row_context: how many decode, and the tokens in their KV.
            chunk_context: tokens before the chunk in progress.
            backlog_tokens: prompt tokens that wait.
            end_s: when the steps in flight are predicted to have ended.
            is_fresh: the rows have a token by then.
        """
        if not rows:
            self._is_stalling, self._last_s = False, None
            return StepPlan(False, None)
        last_s = end_s if is_fresh or self._last_s is None else self._last_s
        left_s = last_s + self._target_s - self._margin_s - end_s
        cap = self._model.prefill_budget(left_s, rows, row_context, chunk_context)
        least_s = LEAST_SHARE * self._target_s + self._model.predict(StepLoad(0, 0, rows, row_context))
        least = self._model.prefill_budget(least_s, rows, row_context, chunk_context)
        stalled_s = 0.0 if is_fresh else end_s - last_s
        self._is_stalling = self._stands_still(rows, backlog_tokens, cap, stalled_s)
        return StepPlan(False, None) if self._is_stalling else StepPlan(True, max(cap, least))

    def _stands_still(self, rows: int, backlog_tokens: int, cap: int, stalled_s: float) -> bool:
        if stalled_s > 0 and self._is_stalling:
            return backlog_tokens > cap and stalled_s < LONGEST_STALL * self._target_s
        if not self._model.is_trusted or backlog_tokens <= self._worth * max(cap, 1):
            return False
        if self._credit < rows:
            self._worth = min(self._worth * DEARER, MOST_WORTH)
        return self._credit >= rows

    def on_rows(self, rows: int, predicted_s: float, took_s: float, now: float) -> None:
        """A step with rows has ended."""
        gap_s = 0.0 if self._last_s is None else now - self._last_s
        self._last_s = now
        self._credit = min(self._credit + LONG_GAPS * rows, MOST_CREDIT * rows)
        if gap_s > self._target_s:
            self._credit -= rows
        if self._credit > rows:
            self._worth = max(self._worth * CHEAPER, LEAST_WORTH)
        is_late = took_s - predicted_s > self._margin_s / 2
        step = (1.0 - LATE_SHARE) if is_late else -LATE_SHARE
        margin_s = self._margin_s + MARGIN_STEP * self._target_s * step
        self._margin_s = min(max(margin_s, MARGIN * self._target_s), MOST_MARGIN * self._target_s)
