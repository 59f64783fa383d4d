"""How far paged attention is from its float64 reference on random inputs, and whether its bits hold.

`kernel_tuning` checks each candidate with these before it times it; tests/gpu asserts them.
"""

import itertools
from collections.abc import Callable, Sequence

import torch

from benchmarks.kernels.random_inputs import RandomInputs
from kernels.paged_decode import paged_decode
from kernels.paged_extend import paged_extend
from kernels.paged_reference import paged_decode_reference, paged_extend_reference

Kernel = Callable[..., torch.Tensor]
HeadShape = tuple[int, int, int]
"""(query heads, KV heads, head dimension)."""


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest absolute difference; NaN counts as infinite."""
    worst = (actual.double() - expected.double()).abs().max().item()
    return worst if worst == worst else float("inf")


def decode_error(
    make: RandomInputs,
    shape: HeadShape,
    page: int,
    dtype: torch.dtype,
    lens: Sequence[int],
    split: int | None,
    decode: Kernel = paged_decode,
) -> float:
    """Return the largest error of decode over the given context lengths."""
    heads, kv_heads, dim = shape
    cache, table, context = make.paged(lens, kv_heads, dim, page, dtype)
    q = make.normal(len(lens), heads, dim, dtype=dtype)
    out = decode(q, cache, table, context, dim**-0.5, split_size=split)
    return error(out, paged_decode_reference(q.double(), cache.double(), table, context, dim**-0.5))


def extend_error(
    make: RandomInputs,
    shape: HeadShape,
    page: int,
    dtype: torch.dtype,
    runs: Sequence[tuple[int, int]],
    extend: Kernel = paged_extend,
) -> float:
    """Return the largest error of extend over runs of (cached, new) tokens."""
    heads, kv_heads, dim = shape
    news = [new for _, new in runs]
    cache, table, context = make.paged([cached + new for cached, new in runs], kv_heads, dim, page, dtype)
    cu_q, q = make.integers([0, *itertools.accumulate(news)]), make.normal(sum(news), heads, dim, dtype=dtype)
    rest = (table, cu_q, context, dim**-0.5)
    out = extend(q, cache, *rest, max_q_len=max(news))
    return error(out, paged_extend_reference(q.double(), cache.double(), *rest, max_q_len=max(news)))


def has_same_bits(make: RandomInputs, shape: HeadShape, page: int, dtype: torch.dtype, length: int) -> bool:
    """Return whether chunks give the bits of one prefill, a row alone those of a batch, and a rerun its own.

    The pages of later chunks are NaN while the first chunk runs.
    """
    heads, kv_heads, dim = shape
    lens = (length, length // 3, 2 * length // 3)
    cache, table, context = make.paged(lens, kv_heads, dim, page, dtype)
    q = make.normal(length, heads, dim, dtype=dtype)
    scale, one = dim**-0.5, (table[:1], make.integers([0, length]))
    whole = paged_extend(q, cache, *one, context[:1], scale, max_q_len=length)
    is_same = torch.equal(whole, paged_extend(q, cache, *one, context[:1], scale, max_q_len=length))
    for cut in (1, length // 2 + 1, length - 5):
        before = cache.clone()
        tokens = torch.arange(cut, length, device=make.device)
        before[table[0, tokens // page].long(), :, :, tokens % page] = float("nan")
        bounds = make.integers([0, cut])
        first = paged_extend(q[:cut], before, table[:1], bounds, make.integers([cut]), scale, max_q_len=cut)
        bounds = make.integers([0, length - cut])
        rest = paged_extend(q[cut:], cache, table[:1], bounds, context[:1], scale, max_q_len=length - cut)
        is_same &= torch.equal(torch.cat((first, rest)), whole)
    rows = paged_decode(q[:3], cache, table, context, scale)
    for seq in range(3):
        own = slice(seq, seq + 1)
        is_same &= torch.equal(paged_decode(q[own], cache, table[own], context[own], scale), rows[own])
    return bool(is_same)
