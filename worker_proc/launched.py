"""Steps that the device has been given, seen from the host."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from quartet.frames import StepResult, StepTimes, TokenLogprobs
from quartet.ids import Epoch
from worker_proc.slots import IntArray, StepPlan
from worker_proc.transfer import Download, PatchedDownload


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way: its ids, one for each sampled row, and for who samples a row again, where its logits are.

    `logits` are valid until the next step is launched; `logit_rows` and `positions` have one entry a sampled row, a
    position being the index in the sequence of the token sampled."""

    download: Download
    logits: Tensor
    logit_rows: IntArray
    positions: IntArray


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A launched step: what its result will say, and the ids on their way to the host."""

    scheduler_epoch: Epoch
    step: int
    plan: StepPlan
    download: Download | PatchedDownload | None
    logprobs: list[tuple[int, TokenLogprobs]]
    times: StepTimes
    on_bad_rows: Callable[[], None]

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        return self.download is None or self.download.is_done()

    def wait(self) -> StepResult:
        """Block until the ids are there; rows whose logits were not finite arrived as -1."""
        ids = np.empty(0, dtype=np.int32) if self.download is None else self.download.wait()
        bad_rows = np.flatnonzero(ids < 0)
        if len(bad_rows):
            ids[bad_rows] = 0
            self.on_bad_rows()
        return StepResult(
            scheduler_epoch=self.scheduler_epoch,
            step=self.step,
            slots=self.plan.sampled.astype("<i4").tobytes(),
            generations=self.plan.generations.astype("<i4").tobytes(),
            ids=ids.astype("<i4").tobytes(),
            logprobs=self.logprobs,
            bad_rows=bad_rows.tolist(),
            times=self.times,
        )
