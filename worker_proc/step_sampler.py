"""Sampling at the end of a step: the fused sampler for plain rows, the full sampler for the rest, ids to the host."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quartet.wire.frames import TokenLogprobs
from worker_proc.batch import ForwardBatch
from worker_proc.constrained_rows import ConstrainedRows, SampledPart
from worker_proc.device_step import LaunchedStep
from worker_proc.fused_sampler import FusedSampler
from worker_proc.grammar.slots import BITS, GrammarSlots, Masks
from worker_proc.sampler import Sampler, SamplingEntry
from worker_proc.sampler.adjust import mask_tokens
from worker_proc.slots import Entered, IntArray
from worker_proc.transfer import Downloader, InFlightIds, PatchedDownload, Uploader


class Sampled(NamedTuple):
    """The sampled rows of a step: in-flight ids, log-probabilities by row, and the rows that are sampled later."""

    ids: InFlightIds | None
    logprobs: list[tuple[int, TokenLogprobs]]
    constrained: ConstrainedRows | None = None


class StepSampler:
    """Samples the logits rows of a step, keeps each id for the next step and starts its copy to the host.

    Args:
        sampler: the full sampler.
        fused_sampler: the sampler of plain rows where our own kernels run, else None.
        grammars: of the slots.
        last_token: newest id of each slot [slots + 1] int64 on the device; updated.
        upload, downloader: copies between host and device.
    """

    def __init__(
        self,
        sampler: Sampler,
        fused_sampler: FusedSampler | None,
        grammars: GrammarSlots,
        last_token: Tensor,
        upload: Uploader,
        downloader: Downloader,
    ) -> None:
        self._sampler, self._fused_sampler, self._last_token = sampler, fused_sampler, last_token
        self._grammars = grammars
        self._upload, self._downloader = upload, downloader
        self._sequence = torch.zeros(1, dtype=torch.int32, device=last_token.device)
        self._constrained: ConstrainedRows | None = None

    def load_kernels(self, vocab_size: int, dtype: torch.dtype) -> None:
        """Run the kernel that a step needs only for a grammar, on logits as the two samplers take them."""
        device, words = self._last_token.device, -(-vocab_size // BITS)
        masks = torch.zeros((1, words), dtype=torch.int32, device=device)
        for one in {dtype, torch.float32}:
            mask_tokens(torch.zeros((1, vocab_size), dtype=one, device=device), masks)

    # Slots

    def clear(self) -> None:
        """Forget every slot."""
        self._sampler.clear()
        self._grammars.clear()
        self._constrained = None

    def apply(self, released: Sequence[int], entered: Sequence[Entered]) -> None:
        """Forget the sequences that leave, and set up those that enter."""
        for slot in released:
            self._sampler.drop_slot(slot)
            self._grammars.release(slot)
        if not entered:
            return
        frames = [(one, one.frame) for one in entered]
        self._sampler.set_slots(
            [SamplingEntry(one.slot, frame.params, one.ids, frame.prompt_length, frame.choice) for one, frame in frames]
        )
        for one in entered:
            self._grammars.enter(one)

    # Steps

    def finish(self) -> None:
        """Sample the constrained rows of the step before: the next launch takes their ids and overwrites its logits."""
        if self._constrained is not None:
            self._constrained.sample()

    def sample(self, slots: IntArray, batch: ForwardBatch, logits: Tensor | None) -> Sampled:
        """Sample `logits` [R, V] for `slots` [R]; return the in-flight ids and the log-probabilities by row."""
        if logits is None:
            # There are no ids, but the step's staging memory is in use until the step is over.
            return Sampled(self._downloader.start(self._last_token[:0]), [])
        rows = np.arange(len(logits))
        if self._fused_sampler is not None:
            output = torch.empty((1, len(logits)), dtype=torch.int32, device=logits.device)
            self._fused_sampler.sample(logits, batch.sample_slots, batch.sample_positions, output, self._sequence)
            ids = self._downloader.start(output[0])
            return self.resample(slots, LaunchedStep(ids, logits, rows, batch.host_positions))
        if len(self._grammars.rows(slots)):
            nothing = self._downloader.start(torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
            return self._replace(slots, LaunchedStep(nothing, logits, rows, batch.host_positions), rows)
        sampled = self._sampler.sample(logits, torch.from_numpy(slots), torch.from_numpy(batch.host_positions))
        self._last_token.index_copy_(0, batch.sample_slots, sampled.ids)
        return Sampled(self._downloader.start(torch.where(sampled.finite, sampled.ids, -1)), sampled.logprobs)

    def resample(self, slots: IntArray, launched: LaunchedStep) -> Sampled:
        """Sample the rows again that the fused sampler does not support; the new ids replace the old ones."""
        return self._replace(slots, launched, self._sampler.unfused_rows(slots))

    def _replace(self, slots: IntArray, launched: LaunchedStep, rows: IntArray) -> Sampled:
        """Sample `rows`, but those with a grammar later."""
        later = self._grammars.rows(slots)
        constrained = None
        if len(later):
            rows = np.setdiff1d(rows, later, assume_unique=True)
            grammars = self._grammars.at(slots[later])
            sample_with = partial(self._sample_constrained, slots, launched, later)
            constrained = ConstrainedRows(later, grammars, self._grammars, self._constrained, sample_with)
            self._constrained = constrained
        if not len(rows):
            return Sampled(launched.ids, [], constrained)
        patch = self._sample_rows(slots, launched, rows)
        return Sampled(PatchedDownload(launched.ids, rows, patch.ids), patch.logprobs, constrained)

    @torch.inference_mode()
    def _sample_constrained(self, slots: IntArray, launched: LaunchedStep, rows: IntArray, masks: Masks) -> SampledPart:
        """Sample rows with the masks of their grammars [n, words]: plain ones by the fused sampler, if there is one.

        As everywhere, the way of a row depends on its parameters alone."""
        full = self._sampler.unfused_rows(slots[rows])
        if self._fused_sampler is None or len(full) == len(rows):
            return self._sample_rows(slots, launched, rows, masks)
        device_rows, device_slots, device_positions, device_masks = self._upload(
            (launched.logits_rows[rows], slots[rows], launched.positions[rows].astype(np.int32), masks)
        )
        logits = launched.logits.index_select(0, device_rows)
        mask_tokens(logits, device_masks)
        output = torch.empty((1, len(rows)), dtype=torch.int32, device=logits.device)
        self._fused_sampler.sample(logits, device_slots, device_positions, output, self._sequence)
        ids = self._downloader.start(output[0])
        if not len(full):
            return SampledPart(ids, [])
        patch = self._sample_rows(slots, launched, rows[full], masks[full])
        return SampledPart(PatchedDownload(ids, full, patch.ids), patch.logprobs)

    @torch.inference_mode()
    def _sample_rows(
        self, slots: IntArray, launched: LaunchedStep, rows: IntArray, masks: Masks | None = None
    ) -> SampledPart:
        """Sample some rows with the full sampler, with the masks of their grammars [n, words] if they have any."""
        host_slots, host_positions = slots[rows], launched.positions[rows]
        arrays = [launched.logits_rows[rows], host_slots]
        device_rows, device_slots, *device_masks = self._upload(arrays if masks is None else [*arrays, masks])
        logits = launched.logits.index_select(0, device_rows)
        sampled = self._sampler.sample(
            logits, torch.from_numpy(host_slots), torch.from_numpy(host_positions), *device_masks
        )
        self._last_token.index_copy_(0, device_slots, sampled.ids)
        patch = self._downloader.start(torch.where(sampled.finite, sampled.ids, -1))
        return SampledPart(patch, [(int(rows[row]), value) for row, value in sampled.logprobs])
