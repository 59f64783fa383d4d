"""Linear attention over prompt chunks: the convolution, the delta rule in blocks (kernels.delta_blocks), and the gated
norm of its outputs."""

import torch
import triton
import triton.language as tl

from kernels.delta_blocks import delta_blocks
from kernels.delta_rule import DeltaSizes, DeltaWeights, check_projections, silu

TOKENS, CHANNEL_BLOCK, HEAD_BLOCK = 16, 256, 8


@triton.jit(do_not_specialize=["chunks", "search_steps"])
def _convolve_kernel(
    projected_ptr, window_ptr, conv_ptr, cu_q_ptr, slots_ptr, contexts_ptr, mixed_ptr, stride_projected, chunks,
    search_steps, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask_t = token < tl.load(cu_q_ptr + chunks)
    # The first chunk that ends beyond the token, by bisection.
    low = tl.zeros([TOKENS], tl.int32)
    high = low + chunks - 1
    for _ in range(search_steps):
        middle = (low + high) // 2
        is_beyond = tl.load(cu_q_ptr + 1 + middle) > token
        low, high = tl.where(is_beyond, low, tl.minimum(middle + 1, chunks - 1)), tl.where(is_beyond, middle, high)
    begin, end = tl.load(cu_q_ptr + low), tl.load(cu_q_ptr + low + 1)
    position = tl.load(contexts_ptr + low) - (end - token)
    window = window_ptr + tl.load(slots_ptr + low).to(tl.int64) * (WIDTH * CHANNELS)
    in_width = channel[None, :] < CHANNELS
    total = tl.zeros([TOKENS, BLOCK], tl.float32)
    for back in tl.static_range(0, WIDTH):
        weight = tl.load(conv_ptr + (WIDTH - 1 - back) * CHANNELS + channel, mask=channel < CHANNELS, other=0.0)
        is_own = mask_t & (token - back >= begin)
        rows = projected_ptr + (token - back).to(tl.int64)[:, None] * stride_projected + channel[None, :]
        x = tl.load(rows, mask=is_own[:, None] & in_width, other=0.0).to(tl.float32)
        is_earlier = mask_t & (token - back < begin) & (position >= back)
        kept = window[:, None] + ((position + WIDTH - back) % WIDTH)[:, None] * CHANNELS + channel[None, :]
        x += tl.load(kept, mask=is_earlier[:, None] & in_width, other=0.0).to(tl.float32)
        total += x * weight.to(tl.float32)[None, :]
    dtype = mixed_ptr.dtype.element_ty
    y = silu(total.to(dtype).to(tl.float32)).to(dtype)
    tl.store(mixed_ptr + token.to(tl.int64)[:, None] * CHANNELS + channel[None, :], y, mask=mask_t[:, None] & in_width)


@triton.jit(do_not_specialize=["chunks"])
def _gated_norm_kernel(
    out_ptr, projected_ptr, norm_ptr, cu_q_ptr, stride_projected, chunks, eps,
    CHANNELS: tl.constexpr, VALUE_HEADS: tl.constexpr, DV: tl.constexpr, HEADS: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(cu_q_ptr + chunks):
        return
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, BLOCK_V)
    mask = (head[:, None] < VALUE_HEADS) & (dims[None, :] < DV)
    at = head[:, None] * DV + dims[None, :]
    dtype = out_ptr.dtype.element_ty
    out = tl.load(out_ptr + token * (VALUE_HEADS * DV) + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(projected_ptr + token * stride_projected + CHANNELS + at, mask=mask, other=0.0).to(tl.float32)
    norm = tl.load(norm_ptr + dims, mask=dims < DV, other=0.0).to(tl.float32)
    normed = (out * tl.rsqrt(tl.sum(out * out, 1) / DV + eps)[:, None]).to(dtype).to(tl.float32)
    gated = (norm[None, :] * normed).to(dtype).to(tl.float32) * silu(gate)
    tl.store(out_ptr + token * (VALUE_HEADS * DV) + at, gated.to(dtype), mask=mask)


def delta_prefill(
    projected: torch.Tensor, window: torch.Tensor, matrix: torch.Tensor, cu_q: torch.Tensor, slots: torch.Tensor,
    contexts: torch.Tensor, sizes: DeltaSizes, weights: DeltaWeights, out: torch.Tensor,
) -> None:  # fmt: skip
    """Fill the rows of `out` [T, Hv Dv] that belong to C chunks and take their tokens into the states of their slots.

    projected [T, n], its rows contiguous, as kernels.delta_rule lays them out. window [slots + 1, width, channels] of
    its dtype and matrix [slots + 1, Hv, Dk, Dv] fp32, mutated. cu_q [C + 1] int32: the ends of the chunks after a 0;
    rows beyond the last are left alone, and chunks may be empty. slots [C]; contexts [C] include the chunk, and a chunk
    at position 0 reads nothing of its slot. Raises ValueError for shapes that do not fit together.
    """
    check_projections(projected, sizes, weights)
    tokens, count = projected.shape[0], slots.shape[0]
    if matrix.shape[1:] != sizes[1:4] or window.shape[1:] != (sizes.width, sizes.channels):
        raise ValueError(f"window {tuple(window.shape)}, matrix {tuple(matrix.shape)} for {sizes}")
    mixed = torch.empty((tokens, sizes.channels), dtype=projected.dtype, device=projected.device)
    _convolve_kernel[(triton.cdiv(tokens, TOKENS), triton.cdiv(sizes.channels, CHANNEL_BLOCK))](
        projected, window, weights.conv, cu_q, slots, contexts, mixed, projected.stride(0), count, count.bit_length(),
        CHANNELS=sizes.channels, WIDTH=sizes.width, TOKENS=TOKENS, BLOCK=CHANNEL_BLOCK, num_warps=4,
    )  # fmt: skip
    delta_blocks(mixed, projected, window, matrix, cu_q, slots, contexts, sizes, weights, out)
    _gated_norm_kernel[(tokens, triton.cdiv(sizes.value_heads, HEAD_BLOCK))](
        out, projected, weights.norm, cu_q, projected.stride(0), count, weights.eps, CHANNELS=sizes.channels,
        VALUE_HEADS=sizes.value_heads, DV=sizes.value_dim, HEADS=HEAD_BLOCK,
        BLOCK_V=triton.next_power_of_2(sizes.value_dim), num_warps=4,
    )  # fmt: skip
