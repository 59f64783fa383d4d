"""Sampling at the end of a step: the fused sampler for plain rows, the full sampler for the rest, ids to the host."""

import numpy as np
import torch
from torch import Tensor

from quartet.wire.frames import TokenLogprobs
from worker_proc.batch import ForwardBatch
from worker_proc.device_step import LaunchedStep
from worker_proc.fused_sampler import FusedSampler
from worker_proc.sampler import Sampler
from worker_proc.slots import IntArray
from worker_proc.transfer import Downloader, InFlightIds, PatchedDownload, Uploader

Sampled = tuple[InFlightIds | None, list[tuple[int, TokenLogprobs]]]


class StepSampler:
    """Samples the logits rows of a step, keeps each id for the next step and starts its copy to the host.

    Args:
        sampler: the full sampler.
        fused_sampler: the sampler of plain rows where our own kernels run, else None.
        last_token: newest id of each slot [slots + 1] int64 on the device; updated.
        upload, downloader: copies between host and device.
    """

    def __init__(
        self,
        sampler: Sampler,
        fused_sampler: FusedSampler | None,
        last_token: Tensor,
        upload: Uploader,
        downloader: Downloader,
    ) -> None:
        self._sampler, self._fused_sampler, self._last_token = sampler, fused_sampler, last_token
        self._upload, self._downloader = upload, downloader
        self._sequence = torch.zeros(1, dtype=torch.int32, device=last_token.device)

    def sample(self, slots: IntArray, batch: ForwardBatch, logits: Tensor | None) -> Sampled:
        """Sample `logits` [R, V] for `slots` [R]; return the in-flight ids and the log-probabilities by row."""
        if logits is None:
            # There are no ids, but the step's staging memory is in use until the step is over.
            return self._downloader.start(self._last_token[:0]), []
        if self._fused_sampler is not None:
            output = torch.empty((1, len(logits)), dtype=torch.int32, device=logits.device)
            self._fused_sampler.sample(logits, batch.sample_slots, batch.sample_positions, output, self._sequence)
            ids = self._downloader.start(output[0])
            return self.resample(slots, LaunchedStep(ids, logits, np.arange(len(logits)), batch.host_positions))
        sampled = self._sampler.sample(logits, torch.from_numpy(slots), torch.from_numpy(batch.host_positions))
        self._last_token.index_copy_(0, batch.sample_slots, sampled.ids)
        return self._downloader.start(torch.where(sampled.finite, sampled.ids, -1)), sampled.logprobs

    def resample(self, slots: IntArray, launched: LaunchedStep) -> Sampled:
        """Sample the rows again that the fused sampler does not support; the new ids replace the old ones."""
        unfused = self._sampler.unfused_rows(slots)
        if not len(unfused):
            return launched.ids, []
        host_slots, host_positions = slots[unfused], launched.positions[unfused]
        device_rows, device_slots = self._upload([launched.logits_rows[unfused], host_slots])
        logits = launched.logits.index_select(0, device_rows)
        sampled = self._sampler.sample(logits, torch.from_numpy(host_slots), torch.from_numpy(host_positions))
        self._last_token.index_copy_(0, device_slots, sampled.ids)
        patch = self._downloader.start(torch.where(sampled.finite, sampled.ids, -1))
        logprobs = [(int(unfused[row]), value) for row, value in sampled.logprobs]
        return PatchedDownload(launched.ids, unfused, patch), logprobs
