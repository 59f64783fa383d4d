"""Rotary embedding of q and k and the write of k and v into the paged cache, optionally after norms of their heads.

One program per token holds all heads as a tile. The rotation is half-split (GPT-NeoX): dim i pairs with dim i + D/2.
fp32 maths with one rounding at the end; the optional norm rounds as the Hugging Face models do, after the
normalisation and again after the weight.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel


@triton.jit
def _norm_weight(weight_ptr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, NORM: tl.constexpr):
    """Both halves [1, BLOCK_HALF] of a norm's weight, fp32; ones where there is no norm."""
    dims = tl.arange(0, BLOCK_HALF)
    low = tl.full([BLOCK_HALF], 1.0, tl.float32)
    high = low
    if NORM:
        low = tl.load(weight_ptr + dims, mask=dims < HALF, other=0.0).to(tl.float32)
        high = tl.load(weight_ptr + HALF + dims, mask=dims < HALF, other=0.0).to(tl.float32)
    return low[None, :], high[None, :]


@triton.jit
def _normed(
    base_ptr, stride_head, low_weight, high_weight, eps,
    HEADS: tl.constexpr, BLOCK_H: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Both halves [BLOCK_H, BLOCK_HALF] of one token's heads, optionally normalised, fp32."""
    heads = tl.arange(0, BLOCK_H)
    dims = tl.arange(0, BLOCK_HALF)
    mask = (heads[:, None] < HEADS) & (dims[None, :] < HALF)
    ptrs = base_ptr + heads[:, None] * stride_head + dims[None, :]
    low = tl.load(ptrs, mask=mask, other=0.0)
    high = tl.load(ptrs + HALF, mask=mask, other=0.0)
    model_dtype = low.dtype
    low = low.to(tl.float32)
    high = high.to(tl.float32)
    if NORM:
        inverse = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * HALF) + eps)[:, None]
        low = (low * inverse).to(model_dtype).to(tl.float32)
        high = (high * inverse).to(model_dtype).to(tl.float32)
        low = (low * low_weight).to(model_dtype).to(tl.float32)
        high = (high * high_weight).to(model_dtype).to(tl.float32)
    return low, high


@triton.jit
def _rope_kv_kernel(
    q_ptr, k_ptr, v_ptr, cos_sin_ptr, positions_ptr, slots_ptr, cache_ptr, q_out_ptr, q_norm_ptr, k_norm_ptr,
    v_norm_ptr, eps, stride_q_token, stride_q_head, stride_k_token, stride_k_head, stride_v_token, stride_v_head,
    stride_page, stride_value, stride_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_KV: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, PAGE: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
    V_NORM: tl.constexpr, USE_PDL: tl.constexpr, METADATA_READY: tl.constexpr,
):  # fmt: skip
    if not METADATA_READY:
        wait_for_prior_kernel(USE_PDL)
    token = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, BLOCK_HALF)
    slot = tl.load(slots_ptr + token)
    table = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * (2 * HALF) + dims
    cos = tl.load(table, mask=dims < HALF, other=0.0)[None, :]
    sin = tl.load(table + HALF, mask=dims < HALF, other=0.0)[None, :]
    q_low, q_high = _norm_weight(q_norm_ptr, HALF, BLOCK_HALF, Q_NORM)
    k_low, k_high = _norm_weight(k_norm_ptr, HALF, BLOCK_HALF, K_NORM)
    v_low, v_high = _norm_weight(v_norm_ptr, HALF, BLOCK_HALF, V_NORM)
    if METADATA_READY:
        wait_for_prior_kernel(USE_PDL)

    q_base = q_ptr + token * stride_q_token
    low, high = _normed(q_base, stride_q_head, q_low, q_high, eps, HEADS, BLOCK_H, HALF, BLOCK_HALF, Q_NORM)
    low, high = low * cos - high * sin, high * cos + low * sin
    heads = tl.arange(0, BLOCK_H)
    mask = (heads[:, None] < HEADS) & (dims[None, :] < HALF)
    out = q_out_ptr + token * (HEADS * 2 * HALF) + heads[:, None] * (2 * HALF) + dims[None, :]
    tl.store(out, low.to(q_out_ptr.dtype.element_ty), mask=mask)
    tl.store(out + HALF, high.to(q_out_ptr.dtype.element_ty), mask=mask)

    if slot < 0:
        return
    k_base = k_ptr + token * stride_k_token
    low, high = _normed(k_base, stride_k_head, k_low, k_high, eps, KV_HEADS, BLOCK_KV, HALF, BLOCK_HALF, K_NORM)
    low, high = low * cos - high * sin, high * cos + low * sin
    kv_heads = tl.arange(0, BLOCK_KV)
    kv_mask = (kv_heads[:, None] < KV_HEADS) & (dims[None, :] < HALF)
    target = cache_ptr + slot // PAGE * stride_page + slot % PAGE * (2 * HALF)
    target += kv_heads[:, None] * stride_head + dims[None, :]
    tl.store(target, low.to(cache_ptr.dtype.element_ty), mask=kv_mask)
    tl.store(target + HALF, high.to(cache_ptr.dtype.element_ty), mask=kv_mask)
    if V_NORM:
        v_base = v_ptr + token * stride_v_token
        low, high = _normed(v_base, stride_v_head, v_low, v_high, eps, KV_HEADS, BLOCK_KV, HALF, BLOCK_HALF, V_NORM)
    else:
        v_ptrs = v_ptr + token * stride_v_token + kv_heads[:, None] * stride_v_head + dims[None, :]
        low, high = tl.load(v_ptrs, mask=kv_mask), tl.load(v_ptrs + HALF, mask=kv_mask)
    if low.dtype != cache_ptr.dtype.element_ty:
        low, high = (
            low.to(tl.float32).to(cache_ptr.dtype.element_ty),
            high.to(tl.float32).to(cache_ptr.dtype.element_ty),
        )
    tl.store(target + stride_value, low, mask=kv_mask)
    tl.store(target + stride_value + HALF, high, mask=kv_mask)


def rope_and_write_kv(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor,
    slot_mapping: torch.Tensor, kv_cache: torch.Tensor, *, q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None, v_norm: torch.Tensor | None = None, eps: float = 1e-6,
    metadata_ready: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Write rotated k and v as it is to their slots in kv_cache; return the rotated q as a fresh [T, H, D] tensor.

    q [T, H, D], k and v [T, Hkv, D] of one dtype, last dim contiguous (views of a fused projection are fine, and v may
    be k: neither is written).
    cos_sin [max_pos, D] fp32, row = D/2 cosines then D/2 sines; positions [T] int32 or int64 below max_pos.
    slot_mapping [T] int64: page * PAGE + offset, no slot twice; -1 skips the cache write (q is still rotated).
    kv_cache [pages, 2, Hkv, PAGE, D] of that dtype or e4m3, mutated. q_norm, k_norm, v_norm [D]: RMS norm weights
    applied per head, before the rotation, with eps. `metadata_ready`: positions and slot_mapping were written before
    the last launch without PDL, see kernels.pdl. Raises ValueError for shapes that do not fit together.
    """
    _check(q, k, v, cos_sin, positions, slot_mapping, kv_cache)
    tokens, heads, head_dim = q.shape
    kv_heads, page = kv_cache.shape[2:4]
    q_out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    if tokens == 0:
        return q_out
    block_h, block_half = triton.next_power_of_2(heads), triton.next_power_of_2(head_dim // 2)
    _rope_kv_kernel[(tokens,)](
        q, k, v, cos_sin, positions, slot_mapping, kv_cache, q_out, q_norm, k_norm, v_norm, eps,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        kv_cache.stride(0), kv_cache.stride(1), kv_cache.stride(2),
        HEADS=heads, KV_HEADS=kv_heads, BLOCK_H=block_h, BLOCK_KV=triton.next_power_of_2(kv_heads),
        HALF=head_dim // 2, BLOCK_HALF=block_half, PAGE=page, Q_NORM=q_norm is not None, K_NORM=k_norm is not None,
        V_NORM=v_norm is not None, METADATA_READY=metadata_ready,
        num_warps=min(8, max(4, block_h * block_half // 512)), **pdl_options(q.device),
    )  # fmt: skip
    return q_out


def rope_and_write_kv_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor,
    slot_mapping: torch.Tensor, kv_cache: torch.Tensor, *, q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None, v_norm: torch.Tensor | None = None, eps: float = 1e-6,
) -> torch.Tensor:  # fmt: skip
    """rope_and_write_kv in plain torch: fp32 maths (fp64 for fp64 inputs) and the same roundings."""
    cos, sin = cos_sin[positions.long()][:, None].chunk(2, dim=-1)

    def normed(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        if weight is None:
            return wide
        normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (weight.to(x.dtype) * normalised.to(x.dtype)).to(wide.dtype)

    def rotated(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        low, high = normed(x, weight).chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)

    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    pages, offsets = slots // kv_cache.shape[3], slots % kv_cache.shape[3]
    # Advanced indices around a slice put the tokens first: the target is [tokens, Hkv, D].
    kv_cache[pages, 0, :, offsets] = rotated(k, k_norm)[kept].to(kv_cache.dtype)
    kv_cache[pages, 1, :, offsets] = normed(v, v_norm)[kept].to(v.dtype).to(kv_cache.dtype)
    return rotated(q, q_norm)


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor,
    slot_mapping: torch.Tensor, kv_cache: torch.Tensor,
) -> None:  # fmt: skip
    tokens, _, head_dim = q.shape
    kv_shape = (tokens, kv_cache.shape[2], head_dim)
    if k.shape != kv_shape or v.shape != kv_shape or kv_cache.shape[4] != head_dim or cos_sin.shape[1] != head_dim:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, cache {tuple(kv_cache.shape)}")
    if positions.shape != (tokens,) or slot_mapping.shape != (tokens,) or head_dim % 2:
        raise ValueError(f"{tokens} tokens, {len(positions)} positions, {len(slot_mapping)} slots, head dim {head_dim}")
    if cos_sin.dtype != torch.float32 or slot_mapping.dtype != torch.int64:
        raise ValueError(f"cos_sin {cos_sin.dtype} must be float32 and slot_mapping {slot_mapping.dtype} int64")
    if {q.stride(2), k.stride(2), v.stride(2), kv_cache.stride(4), cos_sin.stride(1)} != {1}:
        raise ValueError("the last dim of every tensor must be contiguous")
    if kv_cache.stride(3) != head_dim or cos_sin.stride(0) != head_dim:
        raise ValueError("pages and the cos/sin table must be contiguous")
