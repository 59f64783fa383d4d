"""Rows of whole heads in a weight or bias, put into the order in which the operations want them."""

from typing import TypeVar, cast

import torch

from worker_proc.weights.quantized import QuantizedWeight, Weight

Rows = TypeVar("Rows", bound=Weight)


def ordered_heads(rows: Rows, head_dim: int, order: list[int] | None) -> Rows:
    """Return rows of whole heads with each head's dimensions in that order."""
    if order is None:
        return rows
    index = torch.arange(rows.shape[0]).view(-1, head_dim)[:, order].reshape(-1)
    return cast(Rows, rows.ordered(index) if isinstance(rows, QuantizedWeight) else rows[index])


def heads_in_turns(rows: Rows, head_dim: int) -> tuple[Rows, Rows]:
    """Return the rows of every other head from the first one on, and those of the others."""
    count = rows.shape[0]
    index = torch.cat([part.flatten() for part in torch.arange(count).view(-1, 2, head_dim).unbind(1)])
    if isinstance(rows, QuantizedWeight):
        whole = rows.ordered(index)
        return cast(tuple[Rows, Rows], (whole.rows(0, count // 2), whole.rows(count // 2, count)))
    return cast(tuple[Rows, Rows], (rows[index[: count // 2]], rows[index[count // 2 :]]))
