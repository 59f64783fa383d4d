"""Decode attention over prefixes that rows share: each key and value is read once for a tile of rows.

A *group* is a number of decode rows whose contexts begin with the same pages. A program takes a tile of the group's
rows, with all query heads of one kv head in one matrix product, and a run of the prefix's tiles of keys. It stores a
partial result for each row; kernels.paged_decode computes what follows the prefix and folds both. What each program
computes is listed once a step on the device, as for extend attention (kernels.extend_partition).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.extend_partition import (
    BEGIN,
    CONTEXT,
    END,
    FIRST,
    NEW,
    SEQ,
    START,
    WIDTH,
    GroupItems,
    partition_groups,
)
from kernels.paged_tile import LOG2_E, attend_tile, dot_precision, load_kv_tile, page_ids, readable, tile_key
from kernels.pdl import pdl_options, wait_for_prior_kernel


class PrefixTile(NamedTuple):
    """Launch parameters: query rows (rows x heads of a group) and keys per tile, warps, stages, programs per
    multiprocessor."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    programs_per_sm: int


# Keyed by tile_key.
TILES = {
    (64, 2): PrefixTile(64, 64, 4, 3, 2),
    (128, 2): PrefixTile(64, 64, 4, 3, 2),
    (256, 2): PrefixTile(64, 32, 4, 2, 1),
    (64, 4): PrefixTile(16, 32, 8, 2, 1),
    (128, 4): PrefixTile(16, 32, 8, 2, 1),
    (256, 4): PrefixTile(16, 16, 8, 2, 1),
}
INTERPRETER_TILE = PrefixTile(16, 32, 4, 1, 1)


def prefix_tile(head_dim: int, dtype: torch.dtype, device: torch.device) -> PrefixTile:
    """Return the tile for a head dim up to 256. CPU tensors run in the interpreter, which needs small tiles."""
    return INTERPRETER_TILE if device.type == "cpu" else TILES[tile_key(head_dim, dtype)]


class SharedPrefixes(NamedTuple):
    """Groups of the B rows of a batch, int32 on the device. By group: its `ends` [G + 1] among `members`, from 0 on;
    tokens of its prefix, `lengths` [G], whole pages; the row of the page table that has them, `slots` [G]. `members`
    [B]: rows of the batch, group by group. By row: `tokens` [B] of the prefix of its group, 0 without one."""

    ends: torch.Tensor
    lengths: torch.Tensor
    slots: torch.Tensor
    members: torch.Tensor
    tokens: torch.Tensor


class PrefixParts(NamedTuple):
    """Partial results of prefixes: by row of the batch, `tokens` [B] of the prefix and `rows` [B, 4] as in GroupItems;
    accumulators [items, Hkv, tile_rows, D] and (peak, total) pairs, fp32 and flat."""

    tokens: torch.Tensor
    rows: torch.Tensor
    partial: torch.Tensor
    stats: torch.Tensor
    tile_rows: int


def partition_prefixes(
    prefixes: SharedPrefixes, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> GroupItems:
    """Return the partition of the groups' work, for all calls of prefix_decode with these arguments. No host sync."""
    tile, group = prefix_tile(head_dim, dtype, prefixes.members.device), heads // kv_heads
    if group > tile.block_m:
        raise ValueError(f"{group} query heads per kv head exceed the tile's {tile.block_m} rows")
    groups = prefixes.ends, prefixes.lengths, prefixes.members
    return partition_groups(*groups, kv_heads, tile.block_m // group, tile.block_n, tile.programs_per_sm)


@triton.jit(do_not_specialize=["stride_table"])
def _prefix_kernel(
    q_ptr, cache_ptr, table_ptr, items_ptr, members_ptr, slots_ptr, partial_ptr, stats_ptr, scale_log2, kv_heads,
    stride_q_seq, stride_q_head, stride_page, stride_value, stride_head, stride_table,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL)
    DTYPE: tl.constexpr = q_ptr.dtype.element_ty
    head = tl.program_id(0)
    number = tl.program_id(1)
    item = items_ptr + number * WIDTH
    last_tile = tl.load(item + END)
    if last_tile == 0:
        return
    start = tl.load(item + START) + tl.load(item + FIRST)
    left = tl.load(item + NEW) - tl.load(item + FIRST)
    begin = tl.load(item + BEGIN) * BLOCK_N
    end = tl.minimum(last_tile * BLOCK_N, tl.load(item + CONTEXT))
    slot = tl.load(slots_ptr + tl.load(item + SEQ))

    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    row_mask = (rows // GROUP < left) & (rows < BLOCK_M // GROUP * GROUP)
    load_mask = row_mask[:, None] & (dims[None, :] < HEAD_DIM)
    row = tl.load(members_ptr + start + rows // GROUP, mask=row_mask, other=0).to(tl.int64)
    q_heads = head * GROUP + rows % GROUP
    q_ptrs = q_ptr + row[:, None] * stride_q_seq + q_heads[:, None] * stride_q_head + dims[None, :]
    q = tl.load(q_ptrs, mask=load_mask, other=0.0)
    table_row = table_ptr + slot.to(tl.int64) * stride_table
    head_ptr = cache_ptr + head.to(tl.int64) * stride_head
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    ids = page_ids(table_row, begin, end, PAGE, BLOCK_N)
    unmasked_end = end // BLOCK_N * BLOCK_N
    # Whole tiles, then the last one if the prefix ends within it.
    for at in range(begin, unmasked_end, BLOCK_N):
        next_ids = page_ids(table_row, at + BLOCK_N, end, PAGE, BLOCK_N)
        k, v = load_kv_tile(
            head_ptr, ids, at, end, stride_page, stride_value, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, False, DTYPE
        )
        acc, peak, total = attend_tile(q, k, v, True, acc, peak, total, scale_log2, False, PRECISION, 0.0)
        ids = next_ids
    for at in range(unmasked_end, end, BLOCK_N):
        k, v = load_kv_tile(
            head_ptr, ids, at, end, stride_page, stride_value, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, True, DTYPE
        )
        keep = at + tl.arange(0, BLOCK_N)[None, :] < end
        acc, peak, total = attend_tile(q, k, v, keep, acc, peak, total, scale_log2, True, PRECISION, 0.0)
    places = (number * kv_heads + head).to(tl.int64) * BLOCK_M + rows
    tl.store(partial_ptr + places[:, None] * HEAD_DIM + dims[None, :], acc, mask=load_mask)
    tl.store(stats_ptr + places * 2, peak, mask=row_mask)
    tl.store(stats_ptr + places * 2 + 1, total, mask=row_mask)


def prefix_decode(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, prefixes: SharedPrefixes, items: GroupItems,
    scale: float,
) -> PrefixParts:  # fmt: skip
    """Return the partial results of the rows' shared prefixes, for paged_decode.

    q [B, H, D] and kv_cache as for paged_decode; page_table [slots, max_pages] int32, which `prefixes.slots` are rows
    of; items: of partition_prefixes for the same prefixes. No host sync.
    """
    _, heads, head_dim = q.shape
    kv_heads, page = kv_cache.shape[2], kv_cache.shape[3]
    tile, count = prefix_tile(head_dim, q.dtype, q.device), items.items.shape[0]
    results = count * kv_heads * tile.block_m
    partial = torch.empty(results * (head_dim + 2), dtype=torch.float32, device=q.device)
    stats = partial[results * head_dim :]
    _prefix_kernel[(kv_heads, count)](
        q, readable(kv_cache), page_table, items.items, prefixes.members, prefixes.slots, partial, stats,
        scale * LOG2_E, kv_heads, q.stride(0), q.stride(1), *kv_cache.stride()[:3], page_table.stride(0),
        HEAD_DIM=head_dim, BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        GROUP=heads // kv_heads, BLOCK_M=tile.block_m, PAGE=page, BLOCK_N=tile.block_n,
        PRECISION=dot_precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages, **pdl_options(q.device),
    )  # fmt: skip
    return PrefixParts(prefixes.tokens, items.rows, partial, stats, tile.block_m)
