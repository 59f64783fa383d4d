"""Steps that the device has been given, seen from the host."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from quartet.wire.frames import StepResult, StepTimes, TokenLogprobs
from quartet.wire.ids import Epoch
from worker_proc.pace import Pace
from worker_proc.slots import IntArray, StepPlan
from worker_proc.transfer import Arrival

_NO_IDS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way: its ids, one for each sampled row, and for who samples a row again, where its logits are.

    `logits` are valid until the next step is launched; `logit_rows` and `positions` have one entry a sampled row, a
    position being the index in the sequence of the token sampled."""

    download: Arrival
    logits: Tensor
    logit_rows: IntArray
    positions: IntArray


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A launched step: what its result will say, and the ids on their way to the host."""

    scheduler_epoch: Epoch
    step: int
    plan: StepPlan
    download: Arrival | None
    logprobs: list[tuple[int, TokenLogprobs]]
    times: StepTimes
    on_bad_rows: Callable[[], None]
    pace: Pace

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        return self.download is None or self.download.is_done()

    def wait(self) -> StepResult:
        """Block until the ids are there; rows whose logits were not finite arrived as -1."""
        ids, bad_rows = _NO_IDS, list[int]()
        if self.download is not None:
            ids = self.download.wait()
            self.pace.note_end()
        if len(ids) and ids[ids.argmin()] < 0:
            bad_rows = np.flatnonzero(ids < 0).tolist()
            ids[bad_rows] = 0
            self.on_bad_rows()
        return StepResult(
            scheduler_epoch=self.scheduler_epoch,
            step=self.step,
            slots=self.plan.names.slots,
            generations=self.plan.names.generations,
            ids=ids.astype("<i4", copy=False).tobytes(),
            logprobs=self.logprobs,
            bad_rows=bad_rows,
            times=self.times,
        )
