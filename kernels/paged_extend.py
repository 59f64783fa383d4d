"""Causal attention of ragged sequences of new tokens over a paged KV cache that already holds them: chunked prefill.

A program takes BLOCK_M rows of one sequence and kv head: BLOCK_M / GROUP tokens times the GROUP query heads that share
the kv head. Tiles of keys sit at absolute positions, so the result's bits do not depend on how a prompt is chunked,
unless there are so few query tiles that they are cut along the keys. The grid is bounded by shapes; what each program
computes is looked up in a partition that is made on the device (kernels.extend_partition): the host reads no length.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.extend_merge import merge_parts, scratch
from kernels.extend_partition import (
    BEGIN,
    CONTEXT,
    END,
    FIRST,
    NEW,
    PART,
    SEQ,
    SLOT,
    START,
    WIDTH,
    ExtendPartition,
    make_partition,
)
from kernels.paged_extend_hopper import (
    BLOCK_N,
    GROUP_ROWS,
    HOPPER_DIMS,
    HOPPER_DTYPES,
    STAGES,
    extend_on_hopper,
)
from kernels.paged_tile import (
    LOG2_E,
    PLAIN,
    Variant,
    attend_tile,
    check_paged,
    dot_precision,
    finish,
    load_kv_tile,
    page_ids,
    readable,
    tile_key,
)
from kernels.pdl import is_hopper


class ExtendTile(NamedTuple):
    """Launch parameters: query rows (tokens x heads of a group) and keys per tile, warps, pipeline stages."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# Keyed by tile_key. block_n equals decode's in both tables, so that a row's reduction order does not depend on the
# number of tokens in its batch. SMALL_TILES lacks fp32, whose tiles are small anyway (no tensor cores), and head dim
# 256, where fewer rows would spread a row's keys over more warps and so change its sums.
LARGE_TILES = {
    (64, 2): ExtendTile(128, 64, 4, 3),
    (128, 2): ExtendTile(128, 64, 8, 2),
    (256, 2): ExtendTile(128, 32, 8, 2),
    (512, 2): ExtendTile(64, 16, 8, 2),
    (64, 4): ExtendTile(16, 32, 8, 2),
    (128, 4): ExtendTile(16, 32, 8, 2),
    (256, 4): ExtendTile(16, 16, 8, 2),
    (512, 4): ExtendTile(16, 16, 8, 2),
}
SMALL_TILES = {
    (64, 2): ExtendTile(64, 64, 4, 3),
    (128, 2): ExtendTile(64, 64, 4, 2),
}
SMALL_ROWS = 64
INTERPRETER_TILE = ExtendTile(32, 32, 4, 1)


def extend_tile(head_dim: int, dtype: torch.dtype, device: torch.device, max_rows: int) -> ExtendTile:
    """Return the tile for a head dim up to MOST_DIMS and `max_rows`, max_q_len x group, per sequence and kv head."""
    if device.type == "cpu":
        return INTERPRETER_TILE
    key = tile_key(head_dim, dtype)
    large = LARGE_TILES[key]
    return SMALL_TILES.get(key, large) if max_rows <= SMALL_ROWS else large


@triton.jit
def _attend_tiles(
    q, head_ptr, table_row, ids, first, last, end, position, acc, peak, total, scale_log2, stride_page, stride_value,
    MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Attend to the tiles from `first` to `last`; return the page ids of the next one and the three sums."""
    for start in range(first, last, BLOCK_N):
        next_ids = page_ids(table_row, start + BLOCK_N, end, PAGE, BLOCK_N)
        k, v = load_kv_tile(
            head_ptr, ids, start, end, stride_page, stride_value, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, MASKED, DTYPE
        )
        keep = True
        if MASKED:
            keys = start + tl.arange(0, BLOCK_N)[None, :]
            keep = keys <= position[:, None]
            if WINDOW > 0:
                keep = keep & (keys > position[:, None] - WINDOW)
        acc, peak, total = attend_tile(q, k, v, keep, acc, peak, total, scale_log2, MASKED, PRECISION, SOFTCAP)
        ids = next_ids
    return ids, acc, peak, total


@triton.jit(do_not_specialize=["stride_table"])
def _extend_kernel(
    q_ptr, cache_ptr, table_ptr, items_ptr, out_ptr, partial_ptr, stats_ptr, scale_log2, kv_heads,
    stride_q_token, stride_q_head, stride_page, stride_value, stride_head, stride_table,
    sinks_ptr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    DTYPE: tl.constexpr = q_ptr.dtype.element_ty
    # The last tiles of a sequence attend to the most keys: start those first, of all heads.
    head = tl.program_id(0)
    item = items_ptr + (tl.num_programs(1) - 1 - tl.program_id(1)) * WIDTH
    last_tile = tl.load(item + END)
    if last_tile == 0:
        return
    seq = tl.load(item + SEQ)
    seq_start = tl.load(item + START)
    new_tokens = tl.load(item + NEW)
    context = tl.load(item + CONTEXT)
    first = tl.load(item + FIRST)
    slot = tl.load(item + SLOT)
    part = tl.load(item + PART)

    # Rows: token-major, the heads of one token side by side. Positions: cached | new, key n is seen by rows at >= n.
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    local = first + rows // GROUP
    position = context - new_tokens + local
    row_mask = (rows < TOKENS * GROUP) & (local < new_tokens)
    load_mask = row_mask[:, None] & (dims[None, :] < HEAD_DIM)
    token = (seq_start + local).to(tl.int64)
    q_heads = head * GROUP + rows % GROUP
    q_ptrs = q_ptr + token[:, None] * stride_q_token + q_heads[:, None] * stride_q_head + dims[None, :]
    q = tl.load(q_ptrs, mask=load_mask, other=0.0)

    first_position = context - new_tokens + first
    begin = tl.load(item + BEGIN) * BLOCK_N
    end = tl.minimum(tl.minimum(first_position + TOKENS, context), last_tile * BLOCK_N)
    unmasked_end = tl.minimum((first_position + 1) // BLOCK_N * BLOCK_N, end)
    table_row = table_ptr + seq.to(tl.int64) * stride_table
    head_ptr = cache_ptr + head.to(tl.int64) * stride_head
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # Rows of a window may see nothing of their first tiles, which needs a peak that is finite.
    peak = tl.full([BLOCK_M], -1e30 if WINDOW > 0 else float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    ids = page_ids(table_row, begin, end, PAGE, BLOCK_N)
    if WINDOW > 0:
        # Tiles that some rows' windows do not reach.
        reached = (tl.maximum(first_position + TOKENS - WINDOW, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        reached_end = tl.minimum(reached, unmasked_end)
        ids, acc, peak, total = _attend_tiles(
            q, head_ptr, table_row, ids, begin, reached_end, end, position, acc, peak, total, scale_log2, stride_page,
            stride_value, True, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, PRECISION, WINDOW, SOFTCAP, DTYPE,
        )  # fmt: skip
        begin = tl.maximum(begin, reached_end)
    # Tiles that are unmasked for every row, then the tiles on the diagonal.
    ids, acc, peak, total = _attend_tiles(
        q, head_ptr, table_row, ids, begin, unmasked_end, end, position, acc, peak, total, scale_log2, stride_page,
        stride_value, False, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, PRECISION, WINDOW, SOFTCAP, DTYPE,
    )  # fmt: skip
    _ids, acc, peak, total = _attend_tiles(
        q, head_ptr, table_row, ids, tl.maximum(unmasked_end, begin), end, end, position, acc, peak, total, scale_log2,
        stride_page, stride_value, True, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, PRECISION, WINDOW, SOFTCAP, DTYPE,
    )  # fmt: skip

    if slot >= 0:
        places = ((slot + part) * kv_heads + head).to(tl.int64) * BLOCK_M + rows
        tl.store(partial_ptr + places[:, None] * HEAD_DIM + dims[None, :], acc, mask=load_mask)
        tl.store(stats_ptr + places * 2, peak, mask=row_mask)
        tl.store(stats_ptr + places * 2 + 1, total, mask=row_mask)
        return
    out = finish(acc, peak, total, sinks_ptr, q_heads, row_mask)
    out_rows = token * (kv_heads * GROUP) + q_heads
    out_ptrs = out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=load_mask)


def partition_extend(
    cu_q: torch.Tensor, context_lens: torch.Tensor, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, *,
    total: int, max_q_len: int, kv_dtype: torch.dtype | None = None, window: int = 0, is_plain: bool = True,
    cut: bool = True,
) -> ExtendPartition:  # fmt: skip
    """Return the partition of the step's work, for all calls of paged_extend with q [total, heads, head_dim] of
    `dtype`, a cache of `kv_dtype` (None: the same) and these arguments, `window` and `is_plain` being those of its
    variant. Without `cut` no query tile is cut along its keys. No host sync."""
    tile = _query_tile(heads, kv_heads, head_dim, dtype, kv_dtype or dtype, cu_q.device, max_q_len, is_plain)
    group = heads // kv_heads
    if group > tile.block_m:
        raise ValueError(f"{group} query heads per kv head exceed the tile's {tile.block_m} rows")
    return make_partition(cu_q, context_lens, total, kv_heads, tile.block_m // group, tile.block_n, window, cut)


def paged_extend(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, cu_q: torch.Tensor, context_lens: torch.Tensor,
    scale: float, *, max_q_len: int, out: torch.Tensor | None = None, partition: ExtendPartition | None = None,
    variant: Variant = PLAIN,
) -> torch.Tensor:  # fmt: skip
    """Return causal attention of each new token over cached and new tokens, [T, H, D] of q's dtype: `out`, contiguous,
    if that is given, otherwise a fresh tensor.

    q [T, H, D] fp32/fp16/bf16, last dim contiguous: the new tokens of B sequences one after another. kv_cache
    [pages, 2, Hkv, PAGE, D] of q's dtype or e4m3, page 0 a dummy, with the new tokens' K/V written already. page_table
    [B, max_pages] int32; cu_q [B + 1] int32, ascending from 0; context_lens [B] int32, new tokens included; scale > 0.
    max_q_len: upper bound of a sequence's new tokens; it selects the tile only. Sequences of length 0 are allowed.
    partition: of partition_extend for the same arguments; None makes one.
    variant: window, softcap and sinks; tiles of keys before the windows of a query tile are not read.
    Rows at or beyond cu_q[B] (padding) are not written. No host sync. Raises ValueError for shapes that do not fit.
    """
    total, heads, head_dim = q.shape
    check_paged(q, kv_cache, page_table, context_lens, scale)
    if cu_q.shape[0] != context_lens.shape[0] + 1:
        raise ValueError(f"cu_q has {cu_q.shape[0]} entries for {context_lens.shape[0]} sequences")
    if out is None:
        out = torch.empty((total, heads, head_dim), dtype=q.dtype, device=q.device)
    batch, kv_heads, page = context_lens.shape[0], kv_cache.shape[2], kv_cache.shape[3]
    if total == 0 or batch == 0:
        return out
    if partition is None:
        plain = heads, kv_heads, head_dim, q.dtype
        lengths = {"total": total, "max_q_len": max_q_len, "window": variant.window, "is_plain": variant.is_plain}
        partition = partition_extend(cu_q, context_lens, *plain, **lengths, kv_dtype=kv_cache.dtype)
    shape, group = (heads, kv_heads, head_dim, q.dtype, kv_cache.dtype, q.device), heads // kv_heads
    tile = _query_tile(*shape, max_q_len, variant.is_plain)
    if (partition.tile_tokens, partition.block_n) != (tile.block_m // group, tile.block_n):
        raise ValueError(f"a partition of {partition.tile_tokens} x {partition.block_n} tiles, not {tile}")
    partial, stats = scratch(partition, kv_heads, tile.block_m, head_dim)
    if variant.is_plain and fits_hopper(*shape):
        extend_on_hopper(q, kv_cache, page_table, partition, tile.block_m, out, partial, stats, scale * LOG2_E)
    else:
        _extend_kernel[(kv_heads, partition.items.shape[0])](
            q, readable(kv_cache), page_table, partition.items, out, partial, stats, scale * LOG2_E, kv_heads,
            q.stride(0), q.stride(1), kv_cache.stride(0), kv_cache.stride(1), kv_cache.stride(2), page_table.stride(0),
            **variant.options(), HEAD_DIM=head_dim, BLOCK_D=max(16, triton.next_power_of_2(head_dim)), GROUP=group,
            BLOCK_M=tile.block_m, PAGE=page, BLOCK_N=tile.block_n, PRECISION=dot_precision(q.dtype),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    if partition.slots:
        merge_parts(partition, partial, stats, out, kv_heads, tile.block_m, variant.sinks)
    return out


def _query_tile(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device,
    max_q_len: int, is_plain: bool,
) -> ExtendTile:  # fmt: skip
    max_rows = max_q_len * (heads // kv_heads)
    if not is_plain or not fits_hopper(heads, kv_heads, head_dim, dtype, kv_dtype, device):
        return extend_tile(head_dim, dtype, device, max_rows)
    # For short sequences one group of query warps, which saves the other's idle multiplications.
    groups = 1 if max_rows <= GROUP_ROWS else 2
    return ExtendTile(groups * GROUP_ROWS, BLOCK_N, 4 * groups, STAGES)


def fits_hopper(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device
) -> bool:
    """Return whether the Hopper kernel supports the GPU, the types and the shape; it has no variants."""
    if dtype not in HOPPER_DTYPES or kv_dtype != dtype or head_dim not in HOPPER_DIMS:
        return False
    return heads // kv_heads <= GROUP_ROWS and is_hopper(device)
