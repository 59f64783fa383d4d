"""Device functions shared by the paged attention kernels: page lookup, K/V tile loads and one online softmax step.

Decode and extend call the same functions, so that a token gets the same arithmetic in either kernel. Nothing here is
launched by itself, and nothing here writes memory. The checks and tables that both launchers share are here too.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.fp8_numbers import widened

LOG2_E = math.log2(math.e)
MOST_DIMS = 512
"""Of a head, for which the launchers' tables have tiles."""


class Variant(NamedTuple):
    """What attention does beside scale, mask and softmax.

    window: a token sees itself and the window - 1 tokens before it; 0 for all. softcap: scores become
    softcap * tanh(score / softcap); 0 for none. sinks [H]: a score of each query head without a value, in the softmax.
    """

    window: int = 0
    softcap: float = 0.0
    sinks: torch.Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is none of the three."""
        return not self.window and not self.softcap and self.sinks is None

    def options(self) -> dict[str, Any]:
        """Return the kernels' arguments; without any of the three a kernel is compiled as if there were none."""
        return {"sinks_ptr": self.sinks, "WINDOW": self.window, "SOFTCAP": self.softcap}


PLAIN = Variant()


def dot_precision(dtype: torch.dtype) -> str:
    """Return tl.dot's precision: exact products for fp32, where the default is TF32; 16-bit types ignore it."""
    return "ieee" if dtype == torch.float32 else "tf32"


def tile_key(head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the key of the launchers' tile tables: (padded head dim, bytes per element)."""
    return max(64, triton.next_power_of_2(head_dim)), dtype.itemsize


def check_paged(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, context_lens: torch.Tensor, scale: float
) -> None:
    """Raise ValueError unless q [rows, H, D], cache, page table and lengths have matching shapes and layouts."""
    _, heads, head_dim = q.shape
    _, two, kv_heads, page, cache_dim = kv_cache.shape
    if two != 2 or cache_dim != head_dim or heads % kv_heads or kv_cache.dtype not in (q.dtype, torch.float8_e4m3fn):
        raise ValueError(f"q {tuple(q.shape)} {q.dtype} does not fit cache {tuple(kv_cache.shape)} {kv_cache.dtype}")
    if page not in (16, 32, 64, 128) or head_dim > MOST_DIMS or scale <= 0.0:
        raise ValueError(f"page size {page}, head dim {head_dim} or scale {scale} out of range")
    if q.stride(2) != 1 or kv_cache.stride(4) != 1 or kv_cache.stride(3) != head_dim or page_table.stride(1) != 1:
        raise ValueError("heads of q, pages and rows of the page table must be contiguous")
    if context_lens.shape != page_table.shape[:1]:
        raise ValueError(f"page table {tuple(page_table.shape)} and lengths {tuple(context_lens.shape)} disagree")


def readable(kv_cache: torch.Tensor) -> torch.Tensor:
    """Return the cache as kernels read it: e4m3 as bytes."""
    return kv_cache.view(torch.uint8) if kv_cache.dtype == torch.float8_e4m3fn else kv_cache


@triton.jit
def page_ids(table_row, start, end, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, ALIGNED: tl.constexpr = True):
    """Page ids of the tile of BLOCK_N tokens at `start`, a multiple of BLOCK_N if ALIGNED; a scalar if it is known to
    lie in one page.

    Entries at or beyond `end` are never read and come back as page 0, the dummy page. Loops call this one tile ahead
    and carry the ids: loaded in the iteration that uses them, they would make the K/V addresses depend on a load, and
    the compiler would not multi-buffer.
    """
    if ALIGNED and PAGE >= BLOCK_N:
        ids = tl.load(table_row + start // PAGE, mask=start < end, other=0)
    else:
        tokens = start + tl.arange(0, BLOCK_N)
        ids = tl.load(table_row + tokens // PAGE, mask=tokens < end, other=0)
    return ids


@triton.jit
def load_kv_tile(
    head_ptr, ids, start, end, stride_page, stride_value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """K as [BLOCK_D, BLOCK_N] and V as [BLOCK_N, BLOCK_D] of one kv head, columns beyond HEAD_DIM zero. Codes of e4m3,
    a cache of uint8, are made wide in DTYPE.

    With MASKED, tokens at or beyond `end` are zero: a page may hold NaN past the last token, and 0 * NaN would reach
    the output through V.
    """
    tokens = start + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    # 64 bits before the multiplication: caches exceed 2^31 elements.
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
    if k.dtype == tl.uint8:
        k, v = widened(k, DTYPE), widened(v, DTYPE)
    return k, v


@triton.jit
def attend_tile(
    q, k, v, keep, acc, peak, total, scale_log2,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One online softmax step in the exp2 domain; returns acc, peak, total (fp32; peak in units of log2).

    Masking acts on the raw product, before the scale: the expression after it is then the same with and without a
    mask and is contracted alike, so a row's bits do not depend on the loop that computed it. Needs scale > 0, and every
    row must keep at least one key of its first tile, or begin with a peak that is finite.
    """
    scores = tl.dot(q, k, input_precision=PRECISION)
    if SOFTCAP > 0.0:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), which is exact where exp overflows or vanishes.
        scores = 1.0 - 2.0 / (tl.exp2(scores * (scale_log2 * (2.0 / SOFTCAP))) + 1.0)
        scale_log2 = SOFTCAP * 1.4426950408889634
    if MASKED:
        scores = tl.where(keep, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
    decay = tl.exp2(peak - new_peak)
    new_total = total * decay + tl.sum(weights, 1)
    new_acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
    return new_acc, new_peak, new_total


@triton.jit
def fold_part(acc, peak, total, part, part_peak, part_total):
    """Add one part of a row's keys to the parts before it, with explicit fused multiply-adds so that all callers round
    alike."""
    new_peak = tl.maximum(peak, part_peak)
    decay = tl.exp2(peak - new_peak)
    weight = tl.exp2(part_peak - new_peak)
    new_total = tl.fma(total, decay, part_total * weight)
    return tl.fma(acc, tl.zeros_like(acc) + decay[:, None], part * weight[:, None]), new_peak, new_total


@triton.jit
def finish(acc, peak, total, sinks_ptr, q_heads, row_mask):
    """Return the rows' output, fp32, from the sums over all their keys; zeros for a row without keys."""
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + q_heads, mask=row_mask, other=0.0).to(tl.float32) * 1.4426950408889634
        new_peak = tl.maximum(peak, sink)
        decay = tl.exp2(peak - new_peak)
        total = total * decay + tl.exp2(sink - new_peak)
        acc = acc * decay[:, None]
    return acc / tl.where(total > 0.0, total, 1.0)[:, None]
