"""Steps in flight on the device, as the host sees them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from quartet.wire.frames import StepResult, StepTimes, TokenLogprobs
from quartet.wire.ids import Epoch
from worker_proc.completion_poller import CompletionPoller
from worker_proc.constrained_rows import ConstrainedRows
from worker_proc.prompt_scorer import InFlightScores
from worker_proc.slots import IntArray, StepRows
from worker_proc.transfer import InFlightIds

_NO_IDS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A launched forward pass with fused sampling: the in-flight ids, one for each sampled row, and the logits, from
    which some rows may be sampled again.

    `logits` are valid until the next step is launched; `logits_rows` and `positions` have one entry a sampled row, a
    position being the index of the sampled token in its sequence."""

    ids: InFlightIds
    logits: Tensor
    logits_rows: IntArray
    positions: IntArray


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """An InFlightStep of the model: the fields of its result that are known already, the in-flight ids, and the rows
    that are sampled later."""

    scheduler_epoch: Epoch
    step: int
    rows: StepRows
    ids: InFlightIds | None
    logprobs: list[tuple[int, TokenLogprobs]]
    times: StepTimes
    on_bad_rows: Callable[[], None]
    poller: CompletionPoller
    scores: Sequence[InFlightScores] = ()
    constrained: ConstrainedRows | None = None

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        if self.constrained is not None and not self.constrained.is_done():
            return False
        return self.ids is None or self.ids.is_done()

    def wait(self) -> StepResult:
        """Block until the ids are there; rows whose logits were not finite arrive as -1."""
        ids, bad_rows, constrained = _NO_IDS, list[int](), self.constrained
        if constrained is not None:
            constrained.sample()
        if self.ids is not None:
            ids = self.ids.wait()
            self.poller.note_end()
        if constrained is not None:
            ids[constrained.rows] = constrained.wait()
        if len(ids) and ids[ids.argmin()] < 0:
            bad_rows = np.flatnonzero(ids < 0).tolist()
            ids[bad_rows] = 0
            self.on_bad_rows()
        return StepResult(
            scheduler_epoch=self.scheduler_epoch,
            step=self.step,
            slots=self.rows.owners.slots,
            generations=self.rows.owners.generations,
            ids=ids.astype("<i4", copy=False).tobytes(),
            logprobs=self.logprobs if constrained is None else self.logprobs + constrained.logprobs,
            bad_rows=bad_rows,
            times=self.times,
            scored=[one.frame() for one in self.scores],
            grammar_errors=() if constrained is None else constrained.errors,
        )
