"""Logit edits before a draw: bias, masks, penalties, and the token counts that penalties need.

Every edit is exactly neutral for a row that does not request it (adds 0, divides by 1), so that rows can be edited
together or apart with the same bits.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker_proc.sampler.table import FLOATS, INTS, SamplingTable


class TokenCounts:
    """Token counts of the slots with penalties: rows assigned on demand; their number doubles when none is free.

    `output[row, id]` is the number of times the token is in the output, `seen[row, id]` is 1 if it is in prompt or
    output. Both are float32, because they are multiplied into logits (exact up to 2**24). Row 0 stays zero and is
    shared by all slots without penalties.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._vocab_size = vocab_size
        self._rows: dict[int, int] = {}
        self._free: list[int] = []
        self.output = torch.zeros((1, vocab_size), dtype=torch.float32, device=device)
        self.seen = torch.zeros((1, vocab_size), dtype=torch.float32, device=device)

    def assign(self, slot: int, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> int:
        """Recount the tokens of `slot` and return the row of its counts."""
        row = self._rows.get(slot)
        if row is None:
            row = self._rows[slot] = self._take()
        counts = torch.bincount(torch.from_numpy(output), minlength=self._vocab_size)
        seen = counts.clamp(max=1).to(torch.float32)
        seen[torch.from_numpy(prompt)] = 1.0
        self.output[row].copy_(counts.to(torch.float32), non_blocking=True)
        self.seen[row].copy_(seen, non_blocking=True)
        return row

    def release(self, slot: int) -> None:
        """Free the row of `slot`, if it has one."""
        row = self._rows.pop(slot, None)
        if row is not None:
            self._free.append(row)

    def clear(self) -> None:
        """Free all rows and their memory."""
        self._rows.clear()
        self._free.clear()
        self.output, self.seen = self.output[:1].clone(), self.seen[:1].clone()

    def add(self, rows: Tensor, ids: Tensor) -> None:
        """Count one more output token `ids` [R] in `rows` [R]; row 0 is not counted."""
        indices = rows * self._vocab_size + ids
        one = (rows > 0).to(torch.float32)
        self.output.view(-1).scatter_add_(0, indices, one)
        self.seen.view(-1).scatter_(0, indices, one)

    @torch.inference_mode(False)
    def _take(self) -> int:
        if not self._free:
            height = self.output.shape[0]
            extra = max(4, height)
            self.output = torch.nn.functional.pad(self.output, (0, 0, 0, extra))
            self.seen = torch.nn.functional.pad(self.seen, (0, 0, 0, extra))
            self._free = list(range(height + extra - 1, height - 1, -1))
        return self._free.pop()


def add_logit_bias(logits: Tensor, table: SamplingTable, slots: Tensor) -> None:
    """Add each slot's bias to its row of `logits` [R, V] float32, in place."""
    logits.scatter_add_(1, table.bias.ids[slots], table.bias.values[slots])


def mask_end_tokens(logits: Tensor, table: SamplingTable, slots: Tensor, positions: Tensor) -> None:
    """Set end and stop tokens to -inf in rows of `logits` [R, V] with fewer than min_new_tokens, in place."""
    is_short = positions < table.ints[slots, INTS.masked_before]
    values = torch.where(is_short[:, None], table.mask.values[slots], 0.0)
    logits.scatter_add_(1, table.mask.ids[slots], values)


def mask_tokens(logits: Tensor, masks: Tensor) -> None:
    """Set the ids without a bit in `masks` [R, ceil(V / 32)] int32 to -inf in `logits` [R, V] of any float type, in
    place."""
    if logits.device.type == "cpu":
        mask_tokens_in_torch(logits, masks)
    else:
        # Imported here, so that a worker without a GPU loads no Triton.
        from worker_proc.sampler.draw_triton import mask_tokens_on_device

        mask_tokens_on_device(logits, masks)


def mask_tokens_in_torch(logits: Tensor, masks: Tensor) -> None:
    """See mask_tokens; the reference of its kernel."""
    shifts = torch.arange(32, dtype=torch.int32, device=masks.device)
    bits = (masks[:, :, None] >> shifts) & 1
    logits.masked_fill_(bits.view(len(logits), -1)[:, : logits.shape[1]] == 0, float("-inf"))


def apply_penalties(logits: Tensor, table: SamplingTable, token_counts: TokenCounts, slots: Tensor) -> None:
    """Apply repetition (prompt and output), then presence and frequency penalties (output) to `logits` [R, V] in place.

    Repetition divides positive logits and multiplies negative ones; it needs no branch, since one of the two halves is
    always zero. `lerp` is exact at 0 and 1, so a token not seen is divided by 1.
    """
    floats = table.floats[slots].to(torch.float32)
    rows = table.ints[slots, INTS.counts_row]
    counts = token_counts.output.index_select(0, rows)
    scale = torch.lerp(logits.new_ones(()), floats[:, FLOATS.repetition, None], token_counts.seen.index_select(0, rows))
    positive = logits.clamp(min=0.0).div_(scale)
    logits.clamp_(max=0.0).mul_(scale).add_(positive)
    logits.addcmul_(counts.clamp(max=1.0), floats[:, FLOATS.presence, None], value=-1.0)
    logits.addcmul_(counts, floats[:, FLOATS.frequency, None], value=-1.0)
