"""One token of the gated delta rule for each decode row, in one kernel: convolution, gates, state and gated norm.

A program has the state [Dk, Dv] of one value head of one row, which it reads and writes once; that is nearly all of its
traffic. Value heads that share a key head convolve the same q and k, and the first of them keeps their inputs.

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

WARPS = 8


@triton.jit
def _gated(out, norm, gate, eps, DV: tl.constexpr, dtype: tl.constexpr):
    """The norm of one head's output times silu(gate), rounded as the Hugging Face models do."""
    out = out.to(dtype).to(tl.float32)
    normed = (out * tl.rsqrt(tl.sum(out * out, 0) / DV + eps)).to(dtype).to(tl.float32)
    return ((norm * normed).to(dtype).to(tl.float32) * silu(gate)).to(dtype)


@triton.jit
def _delta_decode_kernel(
    projected_ptr, window_ptr, matrix_ptr, conv_ptr, decay_ptr, norm_ptr, slots_ptr, contexts_ptr, first_ptr, out_ptr,
    stride_projected, eps,
    KEY_HEADS: tl.constexpr, VALUE_HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, HAS_FIRST: tl.constexpr, THREADS: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    SHARED: tl.constexpr = VALUE_HEADS // KEY_HEADS
    KEYS: tl.constexpr = KEY_HEADS * DK
    CHANNELS: tl.constexpr = 2 * KEYS + VALUE_HEADS * DV
    head, row = tl.program_id(0), tl.program_id(1)
    key_head = head // SHARED
    k_dims, v_dims = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    k_mask, v_mask = k_dims < DK, v_dims < DV
    slot = tl.load(slots_ptr + row).to(tl.int64)
    context = tl.load(contexts_ptr + row)
    matrix = matrix_ptr + (slot * VALUE_HEADS + head) * (DK * DV)
    if USE_PDL:
        PIECE: tl.constexpr = DK * DV * 4 // THREADS
        thread = tl.arange(0, THREADS)
        prefetch_to_l2(matrix + thread * (PIECE // 4), tl.zeros_like(thread) + PIECE)
    rate = tl.load(decay_ptr + head)
    bias = tl.load(decay_ptr + VALUE_HEADS + head)
    norm = tl.load(norm_ptr + v_dims, mask=v_mask, other=0.0).to(tl.float32)
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    if context == 0:
        return
    position = context - 1
    token = row.to(tl.int64)
    if HAS_FIRST:
        token += tl.load(first_ptr)
    own = projected_ptr + token * stride_projected
    window = window_ptr + slot * (WIDTH * CHANNELS)
    q_channel = key_head * DK + k_dims
    v_channel = 2 * KEYS + head * DV + v_dims
    q, q_in = convolved_token(own, window, conv_ptr, q_channel, k_mask, position, CHANNELS, WIDTH)
    k, k_in = convolved_token(own, window, conv_ptr, KEYS + q_channel, k_mask, position, CHANNELS, WIDTH)
    v, v_in = convolved_token(own, window, conv_ptr, v_channel, v_mask, position, CHANNELS, WIDTH)
    newest = window + (position % WIDTH) * CHANNELS
    tl.store(newest + v_channel, v_in, mask=v_mask)
    is_first = head % SHARED == 0
    tl.store(newest + q_channel, q_in, mask=k_mask & is_first)
    tl.store(newest + KEYS + q_channel, k_in, mask=k_mask & is_first)
    q *= tl.rsqrt(tl.sum(q * q, 0) + L2_EPS) * (DK**-0.5)
    k *= tl.rsqrt(tl.sum(k * k, 0) + L2_EPS)
    gates = own + CHANNELS
    fade = tl.exp(log_decay(tl.load(gates + VALUE_HEADS * (DV + 1) + head), rate, bias))
    pace = update_rate(tl.load(gates + VALUE_HEADS * DV + head))
    gate = tl.load(gates + head * DV + v_dims, mask=v_mask, other=0.0).to(tl.float32)

    at = matrix + k_dims[:, None] * DV + v_dims[None, :]
    mask = k_mask[:, None] & v_mask[None, :]
    state = tl.load(at, mask=mask, other=0.0) * fade
    launch_dependents(USE_PDL)
    change = (v - tl.sum(state * k[:, None], 0)) * pace
    state += k[:, None] * change[None, :]
    tl.store(at, state, mask=mask)
    gated = _gated(tl.sum(state * q[:, None], 0), norm, gate, eps, DV, out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * (VALUE_HEADS * DV) + head * DV + v_dims, gated, mask=v_mask)


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
        projected.stride(0), weights.eps, **sizes.constants,
        BLOCK_K=triton.next_power_of_2(sizes.key_dim), BLOCK_V=triton.next_power_of_2(sizes.value_dim),
        HAS_FIRST=first_row is not None, THREADS=32 * WARPS, num_warps=WARPS, **pdl_options(projected.device),
    )  # fmt: skip
