"""Edits of the logits before a draw: bias, the mask of end tokens, penalties, and the token counts these need.

Every edit is neutral for a row that did not ask for it (adds 0, divides by 1), bit for bit, so that rows can be edited
together or apart.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker_proc.sampler.slots import FLOATS, INTS, SlotTable


class Tallies:
    """Token counts of the slots with penalties: rows handed out on demand, doubled when they run out.

    `output[row, id]` is how often the token is in the output, `seen[row, id]` 1 where it is in prompt or output: both
    float32, because they are multiplied into logits (exact up to 2**24). Row 0 belongs to no slot and stays zero: every
    slot without penalties points at it.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self.output = torch.zeros((1, vocab_size), dtype=torch.float32, device=device)
        self.seen = torch.zeros((1, vocab_size), dtype=torch.float32, device=device)

    def open(self, slot: int, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> int:
        """Count the tokens of `slot` afresh and return the row they are in."""
        row = self._rows.get(slot)
        if row is None:
            row = self._rows[slot] = self._take()
        counts = torch.bincount(torch.from_numpy(output), minlength=self._vocab_size)
        seen = counts.clamp(max=1).to(torch.float32)
        seen[torch.from_numpy(prompt)] = 1.0
        self.output[row].copy_(counts.to(torch.float32), non_blocking=True)
        self.seen[row].copy_(seen, non_blocking=True)
        return row

    def close(self, slot: int) -> None:
        """Give the row of `slot` back, if it has one."""
        row = self._rows.pop(slot, None)
        if row is not None:
            self._free.append(row)

    def clear(self) -> None:
        """Give all rows back and free their memory."""
        self._rows.clear()
        self._free.clear()
        self.output, self.seen = self.output[:1].clone(), self.seen[:1].clone()

    def add(self, rows: Tensor, ids: Tensor) -> None:
        """Count one more output token `ids` [R] in `rows` [R] (0: counted nowhere)."""
        places = rows * self._vocab_size + ids
        one = (rows > 0).to(torch.float32)
        self.output.view(-1).scatter_add_(0, places, one)
        self.seen.view(-1).scatter_(0, places, one)

    @torch.inference_mode(False)
    def _take(self) -> int:
        if not self._free:
            height = self.output.shape[0]
            extra = max(4, height)
            self.output = torch.nn.functional.pad(self.output, (0, 0, 0, extra))
            self.seen = torch.nn.functional.pad(self.seen, (0, 0, 0, extra))
            self._free = list(range(height + extra - 1, height - 1, -1))
        return self._free.pop()


def add_bias(logits: Tensor, table: SlotTable, slots: Tensor) -> None:
    """Add each slot's bias to its row of `logits` [R, V] float32, in place."""
    logits.scatter_add_(1, table.bias.ids[slots], table.bias.values[slots])


def mask_ends(logits: Tensor, table: SlotTable, slots: Tensor, positions: Tensor) -> None:
    """Set end and stop tokens to -inf in the rows of `logits` [R, V] whose output is still too short, in place."""
    is_short = positions < table.ints[slots, INTS.masked_before]
    values = torch.where(is_short[:, None], table.mask.values[slots], 0.0)
    logits.scatter_add_(1, table.mask.ids[slots], values)


def penalise(logits: Tensor, table: SlotTable, tallies: Tallies, slots: Tensor) -> None:
    """In place: repetition (prompt and output), then presence and frequency penalties (output) on `logits` [R, V].

    Repetition divides what is positive and multiplies what is negative; written without a branch, since one of the two
    halves is always zero. `lerp` is exact at 0 and 1, so a token not seen is divided by 1.
    """
    floats = table.floats[slots].to(torch.float32)
    rows = table.ints[slots, INTS.tally]
    counts = tallies.output.index_select(0, rows)
    scale = torch.lerp(logits.new_ones(()), floats[:, FLOATS.repetition, None], tallies.seen.index_select(0, rows))
    positive = logits.clamp(min=0.0).div_(scale)
    logits.clamp_(max=0.0).mul_(scale).add_(positive)
    logits.addcmul_(counts.clamp(max=1.0), floats[:, FLOATS.presence, None], value=-1.0)
    logits.addcmul_(counts, floats[:, FLOATS.frequency, None], value=-1.0)
