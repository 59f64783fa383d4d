"""Device functions shared by the paged attention kernels: page lookup, K/V tile loads and one online softmax step.

Decode and extend call the very same functions, so that a token gets the same arithmetic on either road.
Nothing here is launched by itself and nothing here writes memory. Also what both launchers check and agree on.
"""

import math

import torch
import triton
import triton.language as tl

LOG2_E = math.log2(math.e)


def dot_precision(dtype: torch.dtype) -> str:
    """fp32 asks for exact products (the default would round operands to TF32); narrower types ignore the setting."""
    return "ieee" if dtype == torch.float32 else "tf32"


def tile_key(head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """By what the launchers' tables of tiles are keyed: (padded head dim, bytes per element)."""
    return max(64, triton.next_power_of_2(head_dim)), dtype.itemsize


def check_paged(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, context_lens: torch.Tensor, scale: float
) -> None:
    """Raise ValueError unless q [rows, H, D], cache, page table and lengths fit together and are laid out as needed."""
    _, heads, head_dim = q.shape
    _, two, kv_heads, page, cache_dim = kv_cache.shape
    if two != 2 or cache_dim != head_dim or heads % kv_heads or kv_cache.dtype != q.dtype:
        raise ValueError(f"q {tuple(q.shape)} {q.dtype} does not fit cache {tuple(kv_cache.shape)} {kv_cache.dtype}")
    if page not in (16, 32, 64, 128) or head_dim > 256 or scale <= 0.0:
        raise ValueError(f"page size {page}, head dim {head_dim} or scale {scale} out of range")
    if q.stride(2) != 1 or kv_cache.stride(4) != 1 or kv_cache.stride(3) != head_dim or page_table.stride(1) != 1:
        raise ValueError("heads of q, pages and rows of the page table must be contiguous")
    if context_lens.shape != page_table.shape[:1]:
        raise ValueError(f"page table {tuple(page_table.shape)} and lengths {tuple(context_lens.shape)} disagree")


@triton.jit
def page_ids(table_row, start, end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Page ids of the tile of BLOCK_N tokens at `start`, a multiple of BLOCK_N; a scalar if it lies in one page.

    Entries at or beyond `end` are never read; they come back as page 0, the dummy page. Loops call this one tile ahead
    and carry the ids: loading them in the iteration that uses them makes the K/V addresses wait for a load, and the
    compiler then gives up multi-buffering.
    """
    if PAGE >= BLOCK_N:
        ids = tl.load(table_row + start // PAGE, mask=start < end, other=0)
    else:
        tokens = start + tl.arange(0, BLOCK_N)
        ids = tl.load(table_row + tokens // PAGE, mask=tokens < end, other=0)
    return ids


@triton.jit
def load_kv_tile(
    head_ptr, ids, start, end, stride_page, stride_value,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """K as [BLOCK_D, BLOCK_N] and V as [BLOCK_N, BLOCK_D] of one kv head, columns beyond HEAD_DIM zero.

    With MASKED, tokens at or beyond `end` are zero: what a page holds past the last token may be NaN, and 0 * NaN
    would reach the output through V.
    """
    tokens = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    # 64 bits before the multiplication: a cache of more than 2^31 elements is normal.
    rows = ids.to(tl.int64) * stride_page + (tokens % PAGE) * HEAD_DIM
    k_ptrs = head_ptr + rows[None, :] + dims[:, None]
    v_ptrs = head_ptr + stride_value + rows[:, None] + dims[None, :]
    if MASKED:
        k = tl.load(k_ptrs, mask=(tokens[None, :] < end) & (dims[:, None] < HEAD_DIM), other=0.0)
        v = tl.load(v_ptrs, mask=(tokens[:, None] < end) & (dims[None, :] < HEAD_DIM), other=0.0)
    elif HEAD_DIM == BLOCK_D:
        k = tl.load(k_ptrs)
        v = tl.load(v_ptrs)
    else:
        k = tl.load(k_ptrs, mask=dims[:, None] < HEAD_DIM, other=0.0)
        v = tl.load(v_ptrs, mask=dims[None, :] < HEAD_DIM, other=0.0)
    return k, v


@triton.jit
def attend_tile(q, k, v, keep, acc, peak, total, scale_log2, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """One online softmax step in the exp2 domain; returns acc, peak, total (fp32; peak in units of log2).

    Masking acts on the raw product, ahead of the scale: the expression after it is then the same with and without a
    mask, gets contracted alike, and a row's bits do not tell which loop it went through. Needs scale > 0, and
    every row must have met a kept key by the end of its first tile.
    """
    scores = tl.dot(q, k, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(keep, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
    decay = tl.exp2(peak - new_peak)
    new_total = total * decay + tl.sum(weights, 1)
    new_acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return new_acc, new_peak, new_total
