"""Rows of whole heads in a weight or bias: which a layer has, and the order in which the operations want them."""

from typing import TypeVar, cast

import torch

from quartet.checkpoint.attention_kinds import AttentionKind
from worker_proc.weights.quantized import QuantizedWeight, Weight

Rows = TypeVar("Rows", bound=Weight)


def projections(kind: AttentionKind) -> str:
    """Return the projections of a layer, a character each."""
    return "qkv" if kind.heads.has_values else "qk"


def qkv_sizes(kind: AttentionKind) -> tuple[int, int, int]:
    """Return the rows of q, k and v where one tensor holds them."""
    return kind.heads.query_size, kind.heads.kv_size, kind.heads.kv_size


def ordered(rows: Rows, kind: AttentionKind) -> Rows:
    """Return rows of q or k with each head's dimensions in the order of RopeSpec.head_order."""
    head_dim = kind.heads.head_dim
    order = None if kind.rope is None else kind.rope.head_order(head_dim)
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
