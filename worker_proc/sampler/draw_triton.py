"""Triton kernels of sampling on a GPU: the Gumbel-max arg-max of a row, its top-p threshold, and the mask of a grammar.

They compute the same as `draw.gumbel_argmax`, `draw.top_p_thresholds` and `adjust.mask_tokens_in_torch`: the threshold
to the bit, because masses are integers; the arg-max with the same uniforms and noise that agrees within about 1e-6.
Independent of slots; imported only with a GPU or Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ARGMAX_BLOCK = 4096
_TOP_P_BLOCK = 8192
_MASK_BLOCK = 4096


@triton.jit
def _exponential(words):
    """-log(1 - u) of Philox words; a series where u is small, because 1 - u has lost the digits there."""
    u = tl.maximum(tl.uint_to_uniform_float(words), 4.656612873077393e-10)
    tail = u * (0.2 + u * (0.16666667 + u * (0.14285715 + u * (0.125 + u * 0.11111111))))
    series = u + u * u * (0.5 + u * (0.33333334 + u * (0.25 + tail)))
    return tl.where(u < 0.1, series, -tl.log(1.0 - u))


@triton.jit
def _lane_scores(weights, words, ids, vocab_size):
    return tl.load(weights + ids, mask=ids < vocab_size, other=-1.0) / _exponential(words)


# Views of one row keep their offset and copies of several rows do not: their alignments must not specialise the kernel.
@triton.jit(do_not_specialize_on_alignment=["keys_low", "keys_high", "positions"])
def _gumbel_argmax_kernel(
    weights, keys_low, keys_high, positions, scores, winners, vocab_size, stride, BLOCK: tl.constexpr
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    weights += row.to(tl.int64) * stride
    key = tl.load(keys_low + row) | (tl.load(keys_high + row) << 32)
    groups = chunk * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    zero = tl.zeros_like(groups)
    position = tl.load(positions + row).to(tl.int32)
    r0, r1, r2, r3 = tl.philox(key, groups, zero + position, zero, zero)
    first = groups * 4
    s0 = _lane_scores(weights, r0, first, vocab_size)
    s1 = _lane_scores(weights, r1, first + 1, vocab_size)
    s2 = _lane_scores(weights, r2, first + 2, vocab_size)
    s3 = _lane_scores(weights, r3, first + 3, vocab_size)
    best = tl.max(tl.maximum(tl.maximum(s0, s1), tl.maximum(s2, s3)), axis=0)
    # The lowest id wins among equal scores, as in all samplers.
    lane = tl.where(s0 == best, 0, tl.where(s1 == best, 1, tl.where(s2 == best, 2, tl.where(s3 == best, 3, 1 << 30))))
    winner = tl.min(tl.where(lane < 4, first + lane, 2147483647), axis=0)
    index = row * tl.num_programs(1) + chunk
    tl.store(scores + index, best)
    tl.store(winners + index, winner.to(tl.int64))


def gumbel_argmax(weights: Tensor, key_low: Tensor, key_high: Tensor, positions: Tensor) -> Tensor:
    """Return the id with the largest weight / noise of each row, int64 [R].

    `weights` [R, V] float32 with unit stride in the row, 0 for what cannot be drawn; keys and positions int64 [R].
    """
    rows, vocab_size = weights.shape
    chunks = triton.cdiv(vocab_size, _ARGMAX_BLOCK)
    scores = torch.empty((rows, chunks), dtype=torch.float32, device=weights.device)
    winners = torch.empty((rows, chunks), dtype=torch.int64, device=weights.device)
    inputs = weights, key_low.contiguous(), key_high.contiguous(), positions.contiguous()
    _gumbel_argmax_kernel[(rows, chunks)](*inputs, scores, winners, vocab_size, weights.stride(0), BLOCK=_ARGMAX_BLOCK)
    return winners.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]


@triton.jit
def _mass_at_least(weights, threshold_bits, vocab_size, BLOCK: tl.constexpr):
    """The mass of the weights whose bits are at least `threshold_bits`. The large constant rounds half to even."""
    total = tl.zeros((BLOCK,), dtype=tl.int64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        weight = tl.load(weights + ids, mask=ids < vocab_size, other=0.0)
        units = (weight.to(tl.float64) * 1099511627776.0 + 6755399441055744.0) - 6755399441055744.0
        total += tl.where(weight.to(tl.int32, bitcast=True) >= threshold_bits, units.to(tl.int64), 0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize_on_alignment=["top_ps"])
def _top_p_kernel(weights, top_ps, thresholds, vocab_size, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    weights += row.to(tl.int64) * stride
    top_p = tl.load(top_ps + row)
    low = tl.zeros((), dtype=tl.int32)
    if top_p < 1.0:
        total = _mass_at_least(weights, 0, vocab_size, BLOCK)
        share = top_p * total.to(tl.float64)
        limit = share.to(tl.int64)
        limit += (limit.to(tl.float64) < share).to(tl.int64)
        limit = tl.minimum(tl.maximum(limit, 1), total)
        high = low + 0x3F800001
        for _ in range(30):
            middle = (low + high) // 2
            is_enough = _mass_at_least(weights, middle, vocab_size, BLOCK) >= limit
            low = tl.where(is_enough, middle, low)
            high = tl.where(is_enough, high, middle)
    tl.store(thresholds + row, low.to(tl.float32, bitcast=True))


def top_p_thresholds(weights: Tensor, top_p: Tensor) -> Tensor:
    """Return the smallest weight that top-p keeps in each row of `weights` [R, V], float32 [R]; 0 where `top_p` is 1.

    `weights` float32 in [0, 1] with unit stride in the row, `top_p` float64 [R].
    """
    rows, vocab_size = weights.shape
    thresholds = torch.empty(rows, dtype=torch.float32, device=weights.device)
    _top_p_kernel[(rows,)](
        weights, top_p.contiguous(), thresholds, vocab_size, weights.stride(0), BLOCK=_TOP_P_BLOCK, num_warps=16
    )
    return thresholds


@triton.jit
def _mask_kernel(logits, masks, vocab_size, stride, words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_id = ids < vocab_size
    bits = tl.load(masks + row * words + ids // 32, mask=is_id, other=-1) >> (ids % 32)
    tl.store(logits + row * stride + ids, float("-inf"), mask=is_id & ((bits & 1) == 0))


def mask_tokens_on_device(logits: Tensor, masks: Tensor) -> None:
    """See adjust.mask_tokens."""
    rows, vocab_size = logits.shape
    grid = (rows, triton.cdiv(vocab_size, _MASK_BLOCK))
    _mask_kernel[grid](logits, masks, vocab_size, logits.stride(0), masks.stride(0), BLOCK=_MASK_BLOCK, num_warps=4)
