"""The sampler: state per slot, and the order of the stages of one step.

    raw logits ─► float32 ─► bias ─► mask of end tokens ─► penalties ─► arg-max (greedy)
                                                                    └─► temperature ─► top-k ─► top-p ─► min-p ─► draw

A stage runs only on the rows that need it, and not at all when none does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quartet.wire.frames import SamplingParams, TokenLogprobs
from worker_proc.sampler.adjust import Tallies, add_bias, mask_ends, penalise
from worker_proc.sampler.draw import argmax_rows, draw_rows
from worker_proc.sampler.draw_cpu import draw_narrowed
from worker_proc.sampler.logprobs import row_logprobs
from worker_proc.sampler.slots import INTS, Entering, SlotPlan, SlotTable, has_penalties

# Elements of a block of rows that a device draws from at once: bounds the intermediates to 64 MiB each.
_DRAW_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Result of one call, on the sampler's device: `ids` int64 [R], `finite` bool [R].

    Where `finite` is false (NaN, +inf, or nothing left to choose from) the id is 0 and means nothing, and there are no
    log-probabilities. `logprobs` is sparse: (row, log-probabilities), for the rows whose slots asked for them.
    """

    ids: Tensor
    finite: Tensor
    logprobs: list[tuple[int, TokenLogprobs]]


@dataclass(frozen=True, slots=True)
class _Batch:
    """One call's rows: the slots and positions on the device, and on the host the plans they may belong to.

    `plans` has one entry a row where the slots are known on the host, else it is None and `possible` (all slots in use)
    bounds what a row may ask for.
    """

    slots: Tensor
    positions: Tensor
    plans: list[SlotPlan] | None
    possible: list[SlotPlan]

    def any(self, needs: Callable[[SlotPlan], bool]) -> bool:
        """Whether a row may need it."""
        return any(needs(plan) for plan in self.possible)

    def rows(self, needs: Callable[[SlotPlan], bool]) -> Tensor | None:
        """The rows that may need it, as an index on the device; None for all of them."""
        if self.plans is None:
            return None
        rows = [row for row, plan in enumerate(self.plans) if needs(plan)]
        if len(rows) == len(self.plans):
            return None
        return torch.tensor(rows, dtype=torch.int64).to(self.slots.device, non_blocking=True)


class Sampler:
    """Owns the sampling state of `max_slots` slots on `device`; called by the worker's executor thread only.

    Its tables are made outside inference mode, whatever the caller is in, so that it can be used in and out of it.
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
        self._table = SlotTable(max_slots, vocab_size, tuple(eos_token_ids), self._device)
        self._tallies = Tallies(vocab_size, self._device)
        self._is_special = np.zeros(max_slots, dtype=np.bool_)

    @property
    def table(self) -> SlotTable:
        """The parameters of all slots, for who draws plain rows without this class; read only."""
        return self._table

    def special_rows(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of `slots` that need `sample`: all but greedy rows and draws at a temperature, unfiltered,
        from logits as they are, without log-probabilities."""
        return np.flatnonzero(self._is_special[slots])

    def set_slot(self, slot: int, params: SamplingParams, ids: list[int], prompt_length: int, choice: int) -> None:
        """Give one slot to a sequence: see set_slots."""
        self.set_slots([Entering(slot, params, np.array(ids, dtype=np.int64), prompt_length, choice)])

    def set_slots(self, entering: Sequence[Entering]) -> None:
        """Give slots, none of them twice, to sequences, in one transfer to the device, for which it does not wait.

        Restores what penalties and the minimal length have to know of the output so far. Raises ValueError when a
        slot, an id or a length is out of range; then no slot has changed. The device may lag behind by some steps with
        one call each (see SlotTable.set), not by any number of calls.
        """
        for one in entering:
            self._check(one)
        plans = self._table.set(entering, [self._tally(one) for one in entering])
        for one, plan in zip(entering, plans, strict=True):
            self._is_special[one.slot] = not plan.is_plain

    def _check(self, one: Entering) -> None:
        slot, ids = one.slot, one.ids
        if not 0 <= slot < len(self._table.plans):
            raise ValueError(f"slot {slot} is not below {len(self._table.plans)}")
        if not 0 <= one.prompt_length <= len(ids) <= self._context_length:
            raise ValueError(f"slot {slot}: {len(ids)} ids with a prompt of {one.prompt_length} do not fit the context")
        if has_penalties(one.params) and len(ids) and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            raise ValueError(f"slot {slot}: an id is outside the vocabulary of {self._vocab_size}")

    def _tally(self, one: Entering) -> int:
        """Count the tokens of a sequence whose parameters ask for it; return the row they are in, 0 for none."""
        if has_penalties(one.params):
            return self._tallies.open(one.slot, one.ids[: one.prompt_length], one.ids[one.prompt_length :])
        self._tallies.close(one.slot)
        return 0

    def drop_slot(self, slot: int) -> None:
        """Forget what `slot` asked for. Optional: the next `set_slot` replaces it, but until then it may cost time."""
        self._tallies.close(slot)
        self._table.drop(slot)
        self._is_special[slot] = False

    @torch.inference_mode(False)
    def clear(self) -> None:
        """Forget all slots."""
        self._tallies.clear()
        self._table.clear()
        self._is_special[:] = False

    @torch.no_grad()
    def sample(self, logits: Tensor, slots: Tensor, positions: Tensor) -> SampledRows:
        """Sample one token for each row, and count it as output of its slot.

        `logits` [R, V] of any float type, on the sampler's device, left as they are; `slots` and `positions` int64 [R],
        where `positions` are the indices in the sequences of the tokens being sampled. A slot occurs once at most.
        Best given on the CPU: rows that need nothing special are then known without asking a device; from the
        device itself, every row is treated as if it might need what any slot in use needs. Ids are equal both ways.
        Waits for the device only when log-probabilities are asked for. Raises ValueError for a slot not in use.
        """
        batch = self._batch(slots, positions)
        raw = logits.to(torch.float32)
        ids, largest = argmax_rows(raw)
        finite = largest.isfinite()
        adjusted = raw
        if batch.any(_is_adjusted):
            adjusted = self._adjusted(raw, batch)
            ids, largest = argmax_rows(adjusted)
            finite = finite & largest.isfinite()
        if batch.any(_is_drawn):
            ids = self._drawn(adjusted, ids, largest, batch)
        ids = ids.masked_fill(~finite, 0)
        if batch.any(_has_penalties):
            self._tallies.add(self._table.ints[batch.slots, INTS.tally], ids)
        logprobs = self._logprobs(logits, ids, finite, batch) if batch.any(_has_logprobs) else []
        return SampledRows(ids, finite, logprobs)

    def _batch(self, slots: Tensor, positions: Tensor) -> _Batch:
        plans = self._plans(slots) if slots.device.type == "cpu" else None
        possible = [plan for plan in self._table.plans if plan is not None] if plans is None else plans
        return _Batch(
            slots.to(self._device, non_blocking=True), positions.to(self._device, non_blocking=True), plans, possible
        )

    def _plans(self, slots: Tensor) -> list[SlotPlan]:
        plans = []
        for slot in slots.tolist():
            plan = self._table.plans[slot]
            if plan is None:
                raise ValueError(f"slot {slot} is sampled but was never set")
            plans.append(plan)
        return plans

    def _adjusted(self, raw: Tensor, batch: _Batch) -> Tensor:
        """Return a copy of `raw` with bias, mask and penalties applied where they are asked for."""
        rows = batch.rows(_is_adjusted)
        part = raw.clone() if rows is None else raw[rows]
        slots = batch.slots if rows is None else batch.slots[rows]
        if batch.any(_has_bias):
            add_bias(part, self._table, slots)
        if batch.any(_has_mask):
            mask_ends(part, self._table, slots, batch.positions if rows is None else batch.positions[rows])
        if batch.any(_has_penalties):
            penalise(part, self._table, self._tallies, slots)
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
        max_top_k = max(plan.top_k for plan in batch.possible)
        has_top_p = batch.any(_has_top_p)
        height = max(1, _DRAW_ELEMENTS // logits.shape[1])
        parts = zip(
            logits.split(height), largest.split(height), slots.split(height), positions.split(height), strict=True
        )
        return torch.cat([draw_rows(x, top, self._table, s, p, max_top_k, has_top_p) for x, top, s, p in parts])

    def _drawn_on_cpu(self, adjusted: Tensor, greedy_ids: Tensor, largest: Tensor, batch: _Batch) -> Tensor:
        assert batch.plans is not None
        is_usable = largest.isfinite().tolist()
        rows = [row for row, plan in enumerate(batch.plans) if not plan.is_greedy and is_usable[row]]
        if not rows:
            return greedy_ids
        index = torch.tensor(rows)
        chosen = draw_narrowed(
            adjusted if len(rows) == len(batch.plans) else adjusted[index],
            largest[index].tolist(),
            [batch.plans[row] for row in rows],
            batch.positions[index].tolist(),
        )
        return greedy_ids.index_copy(0, index, torch.tensor(chosen))

    def _logprobs(self, logits: Tensor, ids: Tensor, finite: Tensor, batch: _Batch) -> list[tuple[int, TokenLogprobs]]:
        plans = batch.plans if batch.plans is not None else self._plans(batch.slots.cpu())
        is_usable = finite.tolist()
        rows = [row for row, plan in enumerate(plans) if plan.logprobs >= 0 and is_usable[row]]
        if not rows:
            return []
        index = torch.tensor(rows, dtype=torch.int64, device=self._device)
        wanted = [plans[row].logprobs for row in rows]
        return list(zip(rows, row_logprobs(logits[index], ids[index], wanted), strict=True))


def _is_adjusted(plan: SlotPlan) -> bool:
    return plan.is_adjusted


def _is_drawn(plan: SlotPlan) -> bool:
    return not plan.is_greedy


def _has_bias(plan: SlotPlan) -> bool:
    return plan.has_bias


def _has_mask(plan: SlotPlan) -> bool:
    return plan.has_mask


def _has_penalties(plan: SlotPlan) -> bool:
    return plan.has_penalties


def _has_logprobs(plan: SlotPlan) -> bool:
    return plan.logprobs >= 0


def _has_top_p(plan: SlotPlan) -> bool:
    return plan.top_p < 1.0
