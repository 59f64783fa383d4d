"""One token of the gated delta rule for each decode row, in one kernel: convolution, gates, state and gated norm.

A program has the state [Dk, Dv] of one value head of one row, which it reads and writes once, part by part; that is
nearly all of its traffic. Value heads that share a key head convolve the same q and k, and the first of them keeps
their inputs.

    S <- exp(g) S;   S <- S + k (b (v - S^T k))^T;   o = norm(S^T q / sqrt(Dk)) silu(gate)

Source of the rule: Yang, Kautz, Hatamizadeh: Gated Delta Networks, 2024.
"""

import torch
import triton
import triton.language as tl

from kernels.delta_rule import (
    L2_EPS,
    DeltaSizes,
    DeltaWeights,
    check_projections,
    convolved_token,
    log_decay,
    silu,
    update_rate,
)
from kernels.pdl import launch_dependents, pdl_options, prefetch_to_l2, wait_for_prior_kernel

WARPS, PART = 4, 32


@triton.jit
def _norm_and_gate(out, gates, norm_ptr, eps, DV: tl.constexpr, BLOCK: tl.constexpr):
    """Replace one head's output by its norm times silu(gate), rounded as the Hugging Face models do."""
    dims = tl.arange(0, BLOCK)
    mask = dims < DV
    norm = tl.load(norm_ptr + dims, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gates + dims, mask=mask, other=0.0).to(tl.float32)
    read = tl.load(out + dims, mask=mask, other=0.0)
    dtype = read.dtype
    wide = read.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / DV + eps)).to(dtype).to(tl.float32)
    gated = (norm * normed).to(dtype).to(tl.float32) * silu(gate)
    tl.store(out + dims, gated.to(dtype), mask=mask)


@triton.jit
def _unit(
    own, window, newest, conv_ptr, channel, mask, kept, position, CHANNELS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """q or k of one head, convolved, of length 1, fp32; its input is kept where `kept` says so."""
    x, x_in = convolved_token(own, window, conv_ptr, channel, mask, position, CHANNELS, WIDTH)
    tl.store(newest + channel, x_in, mask=kept)
    return x * tl.rsqrt(tl.sum(x * x, 0) + L2_EPS)


@triton.jit
def _delta_decode_kernel(
    projected_ptr, window_ptr, matrix_ptr, conv_ptr, decay_ptr, norm_ptr, slots_ptr, contexts_ptr, first_ptr, out_ptr,
    stride_projected, eps,
    KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PART: tl.constexpr, HAS_FIRST: tl.constexpr, THREADS: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    SHARED: tl.constexpr = VALUE_HEADS // KEY_HEADS
    KEYS: tl.constexpr = KEY_HEADS * DK
    CHANNELS: tl.constexpr = 2 * KEYS + VALUE_HEADS * DV
    head, row = tl.program_id(0), tl.program_id(1)
    k_dims, part_dims = tl.arange(0, BLOCK_K), tl.arange(0, PART)
    k_mask = k_dims < DK
    slot = tl.load(slots_ptr + row).to(tl.int64)
    context = tl.load(contexts_ptr + row)
    matrix = matrix_ptr + (slot * VALUE_HEADS + head) * (DK * DV)
    PIECE: tl.constexpr = DK * DV * 4 // THREADS
    if USE_PDL and PIECE % 16 == 0:
        thread = tl.arange(0, THREADS)
        prefetch_to_l2(matrix + thread * (PIECE // 4), tl.zeros_like(thread) + PIECE)
    rate, bias = tl.load(decay_ptr + head), tl.load(decay_ptr + VALUE_HEADS + head)
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    if context == 0:
        return
    # Columns of the state in parts, so that several programs share a multiprocessor; the next part is on its way.
    at = matrix + k_dims[:, None] * DV + part_dims[None, :]
    following = tl.load(at, mask=k_mask[:, None] & (part_dims < DV)[None, :], other=0.0)
    position = context - 1
    token = row.to(tl.int64)
    if HAS_FIRST:
        token += tl.load(first_ptr)
    own = projected_ptr + token * stride_projected
    window = window_ptr + slot * (WIDTH * CHANNELS)
    newest = window + (position % WIDTH) * CHANNELS
    channel, kept = head // SHARED * DK + k_dims, k_mask & (head % SHARED == 0)
    q = _unit(own, window, newest, conv_ptr, channel, k_mask, kept, position, CHANNELS, WIDTH) * (DK**-0.5)
    k = _unit(own, window, newest, conv_ptr, KEYS + channel, k_mask, kept, position, CHANNELS, WIDTH)
    gates = own + CHANNELS
    fade = tl.exp(log_decay(tl.load(gates + VALUE_HEADS * (DV + 1) + head), rate, bias))
    pace = update_rate(tl.load(gates + VALUE_HEADS * DV + head))
    out = out_ptr + token * (VALUE_HEADS * DV) + head * DV
    for first in tl.static_range(0, BLOCK_V, PART):
        dims = first + part_dims
        channel, in_part = 2 * KEYS + head * DV + dims, dims < DV
        state = following * fade
        if first + PART < BLOCK_V:
            ahead = k_mask[:, None] & (dims + PART < DV)[None, :]
            following = tl.load(at + first + PART, mask=ahead, other=0.0)
        v, v_in = convolved_token(own, window, conv_ptr, channel, in_part, position, CHANNELS, WIDTH)
        tl.store(newest + channel, v_in, mask=in_part)
        change = (v - tl.sum(state * k[:, None], 0)) * pace
        state += k[:, None] * change[None, :]
        tl.store(at + first, state, mask=k_mask[:, None] & in_part[None, :])
        tl.store(out + dims, tl.sum(state * q[:, None], 0).to(out_ptr.dtype.element_ty), mask=in_part)
    launch_dependents(USE_PDL)
    # The program's own outputs, for their norm.
    tl.debug_barrier()
    _norm_and_gate(out, gates + head * DV, norm_ptr, eps, DV, BLOCK_V)


def delta_decode(
    projected: torch.Tensor, window: torch.Tensor, matrix: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor,
    sizes: DeltaSizes, weights: DeltaWeights, out: torch.Tensor, *, first_row: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Fill rows of `out` [T, Hv Dv] for B decode rows and take their tokens into the states of their slots.

    projected [T, n], its rows contiguous, as kernels.delta_rule lays them out. window [slots + 1, width, channels] of
    its dtype and matrix [slots + 1, Hv, Dk, Dv] fp32, mutated. slots [B] and contexts [B], which include the token; a
    row of context 0 is left out. The rows are the first ones of `projected` and `out`, or with `first_row` [1] int32
    those from there on. Slots, contexts and first_row are *ready*, see kernels.pdl. Raises ValueError for shapes that
    do not fit together.
    """
    check_projections(projected, sizes, weights)
    rows = slots.shape[0]
    if matrix.shape[1:] != sizes[1:4] or window.shape[1:] != (sizes.width, sizes.channels) or len(contexts) != rows:
        raise ValueError(f"window {tuple(window.shape)}, matrix {tuple(matrix.shape)}, {rows} slots for {sizes}")
    if rows == 0:
        return
    _delta_decode_kernel[(sizes.value_heads, rows)](
        projected, window, matrix, weights.conv, weights.decay, weights.norm, slots, contexts, first_row, out,
        projected.stride(0), weights.eps, **sizes.constants, BLOCK_K=triton.next_power_of_2(sizes.key_dim),
        BLOCK_V=max(PART, triton.next_power_of_2(sizes.value_dim)), PART=PART,
        HAS_FIRST=first_row is not None, THREADS=32 * WARPS, num_warps=WARPS, **pdl_options(projected.device),
    )  # fmt: skip
