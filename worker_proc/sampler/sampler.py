"""The sampler: state per slot, and the order of the stages of one step.

    raw logits ─► float32 ─► bias ─► masks (end tokens, grammar) ─► penalties ─► arg-max (greedy)
                                              ┌────────────────────────────────┘
                                              └─► temperature ─► top-k ─► top-p ─► min-p ─► draw

A stage runs only on the rows that need it, and is skipped when none does. A mask comes before the filters, so that they
count what is allowed alone; log-probabilities are those of the raw logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quartet.wire.frames import TokenLogprobs
from worker_proc.sampler.adjust import TokenCounts, add_logit_bias, apply_penalties, mask_end_tokens, mask_tokens
from worker_proc.sampler.draw import argmax_rows, draw_rows
from worker_proc.sampler.draw_cpu import draw_rows_on_cpu
from worker_proc.sampler.logprobs import row_logprobs
from worker_proc.sampler.table import INTS, SamplingEntry, SamplingTable, SlotParams, has_penalties

# Elements of a block of rows that a device draws from at once: bounds each intermediate to 64 MiB.
_DRAW_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Result of one call, on the sampler's device: `ids` int64 [R], `finite` bool [R].

    Where `finite` is false (NaN, +inf, or only -inf) the id is 0 and meaningless, and there are no log-probabilities.
    `logprobs` is sparse: (row, log-probabilities), for the rows whose slots request them.
    """

    ids: Tensor
    finite: Tensor
    logprobs: list[tuple[int, TokenLogprobs]]


@dataclass(frozen=True, slots=True)
class _Batch:
    """One call's rows: their slots and positions on the device, and the parameters of their slots on the host.

    `slot_params` has one entry a row if the slots are known on the host; otherwise it is None, and `possible` holds the
    parameters of all slots in use.
    """

    slots: Tensor
    positions: Tensor
    slot_params: list[SlotParams] | None
    possible: list[SlotParams]

    def any(self, needs: Callable[[SlotParams], bool]) -> bool:
        """Return whether a row may need the stage."""
        return any(needs(params) for params in self.possible)

    def rows(self, needs: Callable[[SlotParams], bool]) -> Tensor | None:
        """Return the rows that may need the stage, as an index on the device; None for all rows."""
        if self.slot_params is None:
            return None
        rows = [row for row, params in enumerate(self.slot_params) if needs(params)]
        if len(rows) == len(self.slot_params):
            return None
        return torch.tensor(rows, dtype=torch.int64).to(self.slots.device, non_blocking=True)


class Sampler:
    """Owns the sampling state of `max_slots` slots on `device`; called by the worker's executor thread only.

    Its tables are made outside inference mode, whatever mode the caller is in, so that it can be used in both modes.
    """

    def __init__(
        self,
        max_slots: int,
        vocab_size: int,
        context_length: int,
        eos_token_ids: Sequence[int],
        device: torch.device | str,
    ) -> None:
        self._device = torch.device(device)
        self._vocab_size = vocab_size
        self._context_length = context_length
        self._table = SamplingTable(max_slots, vocab_size, tuple(eos_token_ids), self._device)
        self._token_counts = TokenCounts(vocab_size, self._device)
        self._is_unfused = np.zeros(max_slots, dtype=np.bool_)

    @property
    def table(self) -> SamplingTable:
        """The parameters of all slots, for the fused sampler; read only."""
        return self._table

    def unfused_rows(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of `slots` that need `sample`: those with filters, logit edits or log-probabilities. The
        others, arg-max or a plain draw at a temperature, can be sampled by the fused sampler."""
        return np.flatnonzero(self._is_unfused[slots])

    def set_slots(self, entering: Sequence[SamplingEntry]) -> None:
        """Assign distinct slots to sequences, in one asynchronous transfer to the device.

        Restores the state that penalties and the minimal length derive from the output so far. Raises ValueError when a
        slot, an id or a length is out of range; then no slot has changed. The number of calls that the device has not
        executed yet is bounded, see SamplingTable.set.
        """
        for one in entering:
            self._check(one)
        slot_params = self._table.set(entering, [self._count_tokens(one) for one in entering])
        for one, params in zip(entering, slot_params, strict=True):
            self._is_unfused[one.slot] = not params.is_fusable

    def _check(self, one: SamplingEntry) -> None:
        slot, ids = one.slot, one.ids
        if not 0 <= slot < len(self._table.slot_params):
            raise ValueError(f"slot {slot} is not below {len(self._table.slot_params)}")
        if not 0 <= one.prompt_length <= len(ids) <= self._context_length:
            raise ValueError(f"slot {slot}: {len(ids)} ids with a prompt of {one.prompt_length} do not fit the context")
        if has_penalties(one.params) and len(ids) and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            raise ValueError(f"slot {slot}: an id is outside the vocabulary of {self._vocab_size}")

    def _count_tokens(self, one: SamplingEntry) -> int:
        """Count the tokens of a sequence with penalties; return the row of its counts, 0 for none."""
        if has_penalties(one.params):
            return self._token_counts.assign(one.slot, one.ids[: one.prompt_length], one.ids[one.prompt_length :])
        self._token_counts.release(one.slot)
        return 0

    def drop_slot(self, slot: int) -> None:
        """Forget the parameters of `slot`. Optional: set_slots replaces them, but until then they may cost time."""
        self._token_counts.release(slot)
        self._table.drop(slot)
        self._is_unfused[slot] = False

    @torch.inference_mode(False)
    def clear(self) -> None:
        """Forget all slots."""
        self._token_counts.clear()
        self._table.clear()
        self._is_unfused[:] = False

    @torch.no_grad()
    def sample(self, logits: Tensor, slots: Tensor, positions: Tensor, masks: Tensor | None = None) -> SampledRows:
        """Sample one token for each row, and count it as output of its slot.

        `logits` [R, V] of any float type, on the sampler's device, not modified; `slots` and `positions` int64 [R],
        where `positions` are the indices in the sequences of the tokens being sampled. A slot occurs at most once.
        `slots` should be on the CPU, so that each stage runs only on the rows that need it; if they are on the device,
        every stage that any slot in use needs runs on all rows. The ids are the same either way. Waits for the device
        only when log-probabilities are requested. Raises ValueError for a slot not in use.

        `masks` [R, ceil(V / 32)] int32 on the device has a bit for each id that a row may get, from the lowest up.
        """
        batch = self._batch(slots, positions)
        raw = logits.to(torch.float32)
        ids, largest = argmax_rows(raw)
        finite = largest.isfinite()
        adjusted = raw
        if masks is not None or batch.any(_is_adjusted):
            adjusted = self._adjusted(raw, batch, masks)
            ids, largest = argmax_rows(adjusted)
            finite = finite & largest.isfinite()
        if batch.any(_is_drawn):
            ids = self._drawn(adjusted, ids, largest, batch)
        ids = ids.masked_fill(~finite, 0)
        if batch.any(_has_penalties):
            self._token_counts.add(self._table.ints[batch.slots, INTS.counts_row], ids)
        logprobs = self._logprobs(logits, ids, finite, batch) if batch.any(_has_logprobs) else []
        return SampledRows(ids, finite, logprobs)

    def _batch(self, slots: Tensor, positions: Tensor) -> _Batch:
        slot_params = self._slot_params(slots) if slots.device.type == "cpu" else None
        possible = (
            [params for params in self._table.slot_params if params is not None] if slot_params is None else slot_params
        )
        return _Batch(
            slots.to(self._device, non_blocking=True),
            positions.to(self._device, non_blocking=True),
            slot_params,
            possible,
        )

    def _slot_params(self, slots: Tensor) -> list[SlotParams]:
        slot_params = []
        for slot in slots.tolist():
            params = self._table.slot_params[slot]
            if params is None:
                raise ValueError(f"slot {slot} is sampled but was never set")
            slot_params.append(params)
        return slot_params

    def _adjusted(self, raw: Tensor, batch: _Batch, masks: Tensor | None = None) -> Tensor:
        """Return a copy of `raw` with bias, masks and penalties applied to the rows that need them."""
        rows = batch.rows(_is_adjusted) if masks is None else None
        part = raw.clone() if rows is None else raw[rows]
        slots = batch.slots if rows is None else batch.slots[rows]
        if batch.any(_has_bias):
            add_logit_bias(part, self._table, slots)
        if batch.any(_has_mask):
            mask_end_tokens(part, self._table, slots, batch.positions if rows is None else batch.positions[rows])
        if masks is not None:
            mask_tokens(part, masks)
        if batch.any(_has_penalties):
            apply_penalties(part, self._table, self._token_counts, slots)
        return part if rows is None else raw.index_copy(0, rows, part)

    def _drawn(self, adjusted: Tensor, greedy_ids: Tensor, largest: Tensor, batch: _Batch) -> Tensor:
        """Return `greedy_ids` with the rows that are not greedy replaced by drawn ids."""
        if self._device.type == "cpu":
            return self._drawn_on_cpu(adjusted, greedy_ids, largest, batch)
        rows = batch.rows(_is_drawn)
        if rows is None:
            drawn = self._drawn_in_blocks(adjusted, largest, batch.slots, batch.positions, batch)
            return torch.where(self._table.ints[batch.slots, INTS.is_greedy] == 1, greedy_ids, drawn)
        drawn = self._drawn_in_blocks(adjusted[rows], largest[rows], batch.slots[rows], batch.positions[rows], batch)
        return greedy_ids.index_copy(0, rows, drawn)

    def _drawn_in_blocks(
        self, logits: Tensor, largest: Tensor, slots: Tensor, positions: Tensor, batch: _Batch
    ) -> Tensor:
        max_top_k = max(params.top_k for params in batch.possible)
        has_top_p = batch.any(_has_top_p)
        height = max(1, _DRAW_ELEMENTS // logits.shape[1])
        parts = zip(
            logits.split(height), largest.split(height), slots.split(height), positions.split(height), strict=True
        )
        return torch.cat([draw_rows(x, top, self._table, s, p, max_top_k, has_top_p) for x, top, s, p in parts])

    def _drawn_on_cpu(self, adjusted: Tensor, greedy_ids: Tensor, largest: Tensor, batch: _Batch) -> Tensor:
        assert batch.slot_params is not None
        is_usable = largest.isfinite().tolist()
        rows = [row for row, params in enumerate(batch.slot_params) if not params.is_greedy and is_usable[row]]
        if not rows:
            return greedy_ids
        index = torch.tensor(rows)
        chosen = draw_rows_on_cpu(
            adjusted if len(rows) == len(batch.slot_params) else adjusted[index],
            largest[index].tolist(),
            [batch.slot_params[row] for row in rows],
            batch.positions[index].tolist(),
        )
        return greedy_ids.index_copy(0, index, torch.tensor(chosen))

    def _logprobs(self, logits: Tensor, ids: Tensor, finite: Tensor, batch: _Batch) -> list[tuple[int, TokenLogprobs]]:
        slot_params = batch.slot_params if batch.slot_params is not None else self._slot_params(batch.slots.cpu())
        is_usable = finite.tolist()
        rows = [row for row, params in enumerate(slot_params) if params.logprobs >= 0 and is_usable[row]]
        if not rows:
            return []
        index = torch.tensor(rows, dtype=torch.int64, device=self._device)
        wanted = [slot_params[row].logprobs for row in rows]
        return list(zip(rows, row_logprobs(logits[index], ids[index], wanted), strict=True))


def _is_adjusted(params: SlotParams) -> bool:
    return params.is_adjusted


def _is_drawn(params: SlotParams) -> bool:
    return not params.is_greedy


def _has_bias(params: SlotParams) -> bool:
    return params.has_bias


def _has_mask(params: SlotParams) -> bool:
    return params.has_mask


def _has_penalties(params: SlotParams) -> bool:
    return params.has_penalties


def _has_logprobs(params: SlotParams) -> bool:
    return params.logprobs >= 0


def _has_top_p(params: SlotParams) -> bool:
    return params.top_p < 1.0
