"""The gated delta rule over prompt chunks, in blocks of 64 tokens: what the tokens of a block change is one triangular
system, after which a block takes a few products instead of 64 steps.

With G the decays of a block added up, b its rates and S the state before it:

    (I + A) d = b (v - exp(G) k S),   A_ij = b_i (k_i k_j) exp(G_i - G_j) for j < i
    o = exp(G) q S + tril((q k^T) exp(G_i - G_j)) d,   S <- exp(G_64) S + (k exp(G_64 - G))^T d

`_solve_kernel` makes u = (I + A)^-1 b v and w = (I + A)^-1 b exp(G) k for all blocks at once, so that d = u - w S;
`_scan_kernel` goes through the blocks of a chunk with the state in registers.

Source: Yang et al.: Parallelizing Linear Transformers with the Delta Rule over Sequence Length, 2024.
"""

import torch
import triton
import triton.language as tl

from kernels.delta_rule import L2_EPS, DeltaSizes, DeltaWeights, log_decay, update_rate

BLOCK = 64
VALUES_A_PROGRAM = 32
# A product over fewer is not what the tensor cores' widest instruction takes.
LEAST_KEYS = 32


@triton.jit
def _inverse(a):
    """(I + a)^-1 of a strictly lower triangular a [64, 64] fp32, row by row.

    Where keys are alike, rows of the inverse are differences of rows that are almost equal, and their errors add up
    over the tokens of a block: products of tensor cores would not do."""
    BLOCK: tl.constexpr = 64
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    inverse = tl.where(row == column, 1.0, 0.0)
    for i in range(1, BLOCK):
        factors = tl.sum(tl.where(row == i, a, 0.0), 0)
        known = tl.sum(factors[:, None] * inverse, 0)
        inverse = tl.where(row == i, inverse - known[None, :], inverse)
    return inverse


@triton.jit
def _keys(base, stride, tokens, mask_t, DK: tl.constexpr, BLOCK_K: tl.constexpr):
    """(keys or queries [64, BLOCK_K] of one head, the factors [64] fp32 that give them length 1); zeros outside."""
    dims = tl.arange(0, BLOCK_K)
    mask = mask_t[:, None] & (dims[None, :] < DK)
    k = tl.load(base + tokens[:, None] * stride + dims[None, :], mask=mask, other=0.0)
    wide = k.to(tl.float32)
    return k, tl.rsqrt(tl.sum(wide * wide, 1) + L2_EPS)


@triton.jit(do_not_specialize=["chunks"])
def _solve_kernel(
    mixed_ptr, projected_ptr, decay_ptr, cu_q_ptr, u_ptr, w_ptr, total_ptr, stride_projected, chunks,
    KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = 64
    KEYS: tl.constexpr = KEY_HEADS * DK
    CHANNELS: tl.constexpr = 2 * KEYS + VALUE_HEADS * DV
    PRECISION: tl.constexpr = "tf32x3" if EXACT else "tf32"
    head, wanted = tl.program_id(0), tl.program_id(1)
    # The wanted-th block of all chunks, each of which begins with a block of its own.
    first, end, before = 0, 0, 0
    begin = tl.load(cu_q_ptr)
    for chunk in range(chunks):
        stop = tl.load(cu_q_ptr + 1 + chunk)
        blocks = (stop - begin + BLOCK - 1) // BLOCK
        is_here = (wanted >= before) & (wanted < before + blocks)
        first = tl.where(is_here, begin + (wanted - before) * BLOCK, first)
        end = tl.where(is_here, stop, end)
        before += blocks
        begin = stop
    if wanted >= before:
        return
    tokens = (first + tl.arange(0, BLOCK)).to(tl.int64)
    mask = tokens < end
    key_head = head // (VALUE_HEADS // KEY_HEADS)
    k, unit = _keys(mixed_ptr + KEYS + key_head * DK, CHANNELS, tokens, mask, DK, BLOCK_K)
    gates = projected_ptr + tokens * stride_projected + CHANNELS + VALUE_HEADS * DV + head
    pace = tl.where(mask, update_rate(tl.load(gates, mask=mask, other=0.0)), 0.0)
    decay = tl.load(gates + VALUE_HEADS, mask=mask, other=0.0)
    decay = log_decay(decay, tl.load(decay_ptr + head), tl.load(decay_ptr + VALUE_HEADS + head))
    total = tl.cumsum(tl.where(mask, decay, 0.0), 0)
    tl.store(total_ptr + tokens * VALUE_HEADS + head, total, mask=mask)

    index = tl.arange(0, BLOCK)
    is_before = index[:, None] > index[None, :]
    between = tl.exp(tl.where(is_before, total[:, None] - total[None, :], 0.0))
    dtype = u_ptr.dtype.element_ty
    products = tl.dot(k, tl.trans(k), input_precision=PRECISION) * unit[None, :] * (unit * pace)[:, None]
    inverse = _inverse(tl.where(is_before, products * between, 0.0))

    v_dims, k_dims = tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_K)
    v_mask = mask[:, None] & (v_dims[None, :] < DV)
    values = mixed_ptr + tokens[:, None] * CHANNELS + 2 * KEYS + head * DV + v_dims[None, :]
    v = tl.load(values, mask=v_mask, other=0.0)
    u = tl.dot((inverse * pace[None, :]).to(dtype), v, input_precision=PRECISION)
    rows = tokens[:, None] * VALUE_HEADS + head
    tl.store(u_ptr + rows * DV + v_dims[None, :], u.to(dtype), mask=v_mask)
    w = tl.dot((inverse * (pace * unit * tl.exp(total))[None, :]).to(dtype), k, input_precision=PRECISION)
    tl.store(w_ptr + rows * DK + k_dims[None, :], w.to(dtype), mask=mask[:, None] & (k_dims[None, :] < DK))


@triton.jit
def _keep_inputs(
    projected_ptr, window_ptr, stride, first, end, context, channel, mask, CHANNELS: tl.constexpr, WIDTH: tl.constexpr
):
    """Copy the inputs of the chunk's last tokens to the window of its slot."""
    for back in tl.static_range(0, WIDTH):
        token = end - 1 - back
        kept = mask & (token >= first)
        x = tl.load(projected_ptr + token.to(tl.int64) * stride + channel, mask=kept, other=0.0)
        position = context - 1 - back
        tl.store(window_ptr + ((position + WIDTH) % WIDTH) * CHANNELS + channel, x, mask=kept)


@triton.jit
def _scan_kernel(
    mixed_ptr, projected_ptr, window_ptr, matrix_ptr, cu_q_ptr, slots_ptr, contexts_ptr, u_ptr, w_ptr, total_ptr,
    out_ptr, stride_projected,
    KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = 64
    SHARED: tl.constexpr = VALUE_HEADS // KEY_HEADS
    KEYS: tl.constexpr = KEY_HEADS * DK
    CHANNELS: tl.constexpr = 2 * KEYS + VALUE_HEADS * DV
    PRECISION: tl.constexpr = "tf32x3" if EXACT else "tf32"
    part, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin, end = tl.load(cu_q_ptr + chunk), tl.load(cu_q_ptr + 1 + chunk)
    if begin == end:
        return
    slot, context = tl.load(slots_ptr + chunk).to(tl.int64), tl.load(contexts_ptr + chunk)
    key_head = head // SHARED
    k_dims, v_dims = tl.arange(0, BLOCK_K), part * BLOCK_V + tl.arange(0, BLOCK_V)
    k_mask, v_mask = k_dims < DK, v_dims < DV
    at = matrix_ptr + (slot * VALUE_HEADS + head) * (DK * DV) + k_dims[:, None] * DV + v_dims[None, :]
    state_mask = k_mask[:, None] & v_mask[None, :]
    state = tl.load(at, mask=state_mask & (context > end - begin), other=0.0)
    dtype = u_ptr.dtype.element_ty
    index = tl.arange(0, BLOCK)
    for first in range(begin, end, BLOCK):
        tokens = (first + index).to(tl.int64)
        mask = tokens < end
        q, q_unit = _keys(mixed_ptr + key_head * DK, CHANNELS, tokens, mask, DK, BLOCK_K)
        k, k_unit = _keys(mixed_ptr + KEYS + key_head * DK, CHANNELS, tokens, mask, DK, BLOCK_K)
        q_unit *= DK**-0.5
        total = tl.load(total_ptr + tokens * VALUE_HEADS + head, mask=mask, other=0.0)
        newest = tl.minimum(first + BLOCK, end) - 1
        whole = tl.load(total_ptr + newest.to(tl.int64) * VALUE_HEADS + head)
        rows = tokens[:, None] * VALUE_HEADS + head
        w_mask = mask[:, None] & k_mask[None, :]
        w = tl.load(w_ptr + rows * DK + k_dims[None, :], mask=w_mask, other=0.0)
        uv_mask = mask[:, None] & v_mask[None, :]
        u = tl.load(u_ptr + rows * DV + v_dims[None, :], mask=uv_mask, other=0.0).to(tl.float32)
        known = state.to(dtype)
        change = u - tl.dot(w, known, input_precision=PRECISION)
        is_seen = index[:, None] >= index[None, :]
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * q_unit[:, None] * k_unit[None, :]
        scores = tl.where(is_seen, scores * tl.exp(tl.where(is_seen, total[:, None] - total[None, :], 0.0)), 0.0)
        out = tl.dot(q, known, input_precision=PRECISION) * (q_unit * tl.exp(total))[:, None]
        out = tl.dot(scores.to(dtype), change.to(dtype), out, input_precision=PRECISION)
        tl.store(out_ptr + rows * DV + v_dims[None, :], out.to(out_ptr.dtype.element_ty), mask=uv_mask)
        change = (change * (k_unit * tl.exp(whole - total))[:, None]).to(dtype)
        state = tl.dot(tl.trans(k), change, state * tl.exp(whole), input_precision=PRECISION)
    tl.store(at, state, mask=state_mask)

    window = window_ptr + slot * (WIDTH * CHANNELS)
    inputs = projected_ptr, window, stride_projected, begin, end, context
    v_channel = 2 * KEYS + head * DV + v_dims
    _keep_inputs(*inputs, v_channel, v_mask, CHANNELS, WIDTH)
    q_channel, is_first = key_head * DK + k_dims, k_mask & (head % SHARED == 0) & (part == 0)
    _keep_inputs(*inputs, q_channel, is_first, CHANNELS, WIDTH)
    _keep_inputs(*inputs, KEYS + q_channel, is_first, CHANNELS, WIDTH)


def delta_blocks(
    mixed: torch.Tensor, projected: torch.Tensor, window: torch.Tensor, matrix: torch.Tensor, cu_q: torch.Tensor,
    slots: torch.Tensor, contexts: torch.Tensor, sizes: DeltaSizes, weights: DeltaWeights, out: torch.Tensor,
) -> None:  # fmt: skip
    """Fill the rows of `out` [T, Hv Dv] that belong to C chunks with what their tokens read from the states, and take
    the tokens into the states; a chunk at position 0 starts from zero, another from the state of its slot.

    mixed [T, channels] is convolved; projected [T, n], window and matrix as in kernels.delta_decode. cu_q [C + 1] int32
    are the ends of the chunks, after a 0; contexts [C] include the chunk; slots [C]. Chunks may be empty.
    """
    tokens, heads = mixed.shape[0], sizes.value_heads
    u, w = mixed.new_empty((tokens, heads, sizes.value_dim)), mixed.new_empty((tokens, heads, sizes.key_dim))
    total = torch.empty((tokens, heads), dtype=torch.float32, device=mixed.device)
    count, block_k = slots.shape[0], max(LEAST_KEYS, triton.next_power_of_2(sizes.key_dim))
    constants = {**sizes.constants, "BLOCK_K": block_k, "EXACT": mixed.dtype == torch.float32}
    block_v = triton.next_power_of_2(sizes.value_dim)
    # Each chunk may end within a block.
    _solve_kernel[(heads, triton.cdiv(tokens, BLOCK) + count)](
        mixed, projected, weights.decay, cu_q, u, w, total, projected.stride(0), count, **constants, BLOCK_V=block_v,
        num_warps=8,
    )  # fmt: skip
    block_v = min(VALUES_A_PROGRAM, block_v)
    _scan_kernel[(triton.cdiv(sizes.value_dim, block_v), heads, count)](
        mixed, projected, window, matrix, cu_q, slots, contexts, u, w, total, out, projected.stride(0), **constants,
        BLOCK_V=block_v, num_warps=8, num_stages=1,
    )  # fmt: skip
