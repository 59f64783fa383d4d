"""Attention of one new token per sequence over a paged KV cache: split-KV, then a reduction of the rows that need one.

A row's result is defined by its splits, counted from the first token that it sees: each split has an online softmax of
its own, and the splits are folded one after another. Which program computes which split (kernels.decode_partition)
changes no bits. A program that computes all splits of a (sequence, kv head) pair folds them in registers; the others
store partial results for the reduce kernel, which folds in the same order with the same instructions.

A tile packs the query heads that share a kv head, so that each K/V byte is read once. The grid depends on the device
alone, so it can be captured in a CUDA graph. The new token's K/V must be in the cache already. Split-KV is after
Flash-Decoding.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.decode_partition import (
    block_b,
    decode_tile,
    default_split_size,
    locate,
    partition_decode,
)
from kernels.decode_reduce import REDUCE_BLOCK, reduce_kernel, reduce_warps
from kernels.paged_tile import (
    LOG2_E,
    PLAIN,
    Variant,
    attend_tile,
    check_paged,
    dot_precision,
    finish,
    fold_part,
    load_kv_tile,
    page_ids,
    readable,
)
from kernels.pdl import pdl_options, wait_for_prior_kernel
from kernels.prefix_decode import PrefixParts


def decode_workspace_numel(splits: int, heads: int, head_dim: int) -> int:
    """Return the fp32 elements that `splits` splits need, summed over the rows of a batch.

    A row has at least one and at most ceil(context / split_size) splits; split_size may be default_split_size.
    """
    return splits * heads * (head_dim + 2)


@triton.jit(do_not_specialize=["num_seqs", "capacity", "stride_table"])
def _split_kernel(
    q_ptr, cache_ptr, table_ptr, lens_ptr, partition_ptr, first_ptr, prefix_tokens_ptr, out_ptr, partial_ptr, stats_ptr,
    scale_log2, num_seqs, kv_heads, capacity,
    stride_q_seq, stride_q_head, stride_page, stride_value, stride_head, stride_table,
    sinks_ptr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, UNIT: tl.constexpr, GROW_SPLITS: tl.constexpr, BLOCK_B: tl.constexpr,
    HAS_FIRST: tl.constexpr, PREFIX_ROWS: tl.constexpr, USE_PDL: tl.constexpr, METADATA_READY: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    if not METADATA_READY:
        wait_for_prior_kernel(USE_PDL)
    bounds_ptr = partition_ptr + 1 + tl.program_id(0)
    unit = tl.load(bounds_ptr)
    range_end = tl.load(bounds_ptr + 1)
    ends_ptr = partition_ptr + tl.num_programs(0) + 2
    DTYPE: tl.constexpr = q_ptr.dtype.element_ty
    tokens = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    rows = tl.arange(0, BLOCK_M)
    row_mask = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    if METADATA_READY:
        wait_for_prior_kernel(USE_PDL)
    while unit < range_end:
        seq, before, context, units, per_split = locate(
            unit, ends_ptr, lens_ptr, num_seqs, UNIT, GROW_SPLITS, BLOCK_B, WINDOW
        )
        splits = (units + per_split - 1) // per_split
        head = (unit - before) // units
        pair = before + head * units
        # Splits of this pair that start in the range: none if the range starts inside the pair's last split.
        split = (unit - pair + per_split - 1) // per_split
        left = (range_end - pair - split * per_split + per_split - 1) // per_split
        taken = tl.maximum(tl.minimum(splits - split, left), 0)
        whole = taken == splits
        if PREFIX_ROWS:
            # The reduce kernel folds it with the parts of its prefix.
            whole = whole & (tl.load(prefix_tokens_ptr + seq) == 0)
        slot = before // kv_heads + split
        # Partial results that exceed the workspace are skipped; the reduce kernel writes NaN for the row.
        has_room = whole | (slot - split + units <= capacity)
        size = per_split * UNIT
        begin = split * size
        if WINDOW > 0:
            begin += tl.maximum(context - WINDOW, 0)
        end = tl.where(has_room, tl.minimum(begin + taken * size, context), begin)
        split_end = tl.minimum(begin + size, end)
        unit = pair + tl.minimum((split + taken) * per_split, units)

        table_row = table_ptr + seq.to(tl.int64) * stride_table
        head_ptr = cache_ptr + head.to(tl.int64) * stride_head
        q_heads = head * GROUP + rows
        # Loaded for each pair, as a register of its own would be one too many.
        row = (seq + tl.load(first_ptr) if HAS_FIRST else seq).to(tl.int64)
        q_ptrs = q_ptr + row * stride_q_seq + q_heads[:, None] * stride_q_head + dims[None, :]
        q = tl.load(q_ptrs, mask=row_mask, other=0.0)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        row_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        row_peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_total = tl.zeros([BLOCK_M], tl.float32)
        ids = page_ids(table_row, begin, end, PAGE, BLOCK_N, WINDOW == 0)
        for start in range(begin, end, BLOCK_N):
            next_ids = page_ids(table_row, start + BLOCK_N, end, PAGE, BLOCK_N, WINDOW == 0)
            k, v = load_kv_tile(
                head_ptr, ids, start, end, stride_page, stride_value, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, True, DTYPE
            )
            keep = start + tokens[None, :] < end
            acc, peak, total = attend_tile(q, k, v, keep, acc, peak, total, scale_log2, True, PRECISION, SOFTCAP)
            ids = next_ids
            if start + BLOCK_N >= split_end:
                if whole:
                    row_acc, row_peak, row_total = fold_part(row_acc, row_peak, row_total, acc, peak, total)
                else:
                    part_rows = slot.to(tl.int64) * (kv_heads * GROUP) + q_heads
                    tl.store(partial_ptr + part_rows[:, None] * HEAD_DIM + dims[None, :], acc, mask=row_mask)
                    tl.store(stats_ptr + part_rows * 2, peak, mask=rows < GROUP)
                    tl.store(stats_ptr + part_rows * 2 + 1, total, mask=rows < GROUP)
                slot += 1
                split_end = tl.minimum(split_end + size, end)
                acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)

        if whole:
            out = finish(row_acc, row_peak, row_total, sinks_ptr, q_heads, rows < GROUP)
            out_rows = row * (kv_heads * GROUP) + q_heads
            out_ptrs = out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :]
            tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=row_mask)


def paged_decode(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, context_lens: torch.Tensor, scale: float, *,
    split_size: int | None = None, workspace: torch.Tensor | None = None, partition: torch.Tensor | None = None,
    metadata_ready: bool = False, out: torch.Tensor | None = None, first_row: torch.Tensor | None = None,
    prefixes: PrefixParts | None = None, variant: Variant = PLAIN,
) -> torch.Tensor:  # fmt: skip
    """Return softmax(q K^T * scale) V per sequence, [B, H, D] of q's dtype; zeros for an empty context.

    q [B, H, D] fp32/fp16/bf16, last dim contiguous. kv_cache [pages, 2, Hkv, PAGE, D] of q's dtype or e4m3, page 0 a
    dummy. page_table [B, max_pages] int32, context_lens [B] int32, the new token included; scale > 0.
    split_size: tokens per split, a multiple of the tile; None takes default_split_size, and two or four times that for
    long rows. The result's bits depend on it, so it must stay fixed for an engine's life.
    workspace: fp32 scratch of decode_workspace_numel(...) elements, free for reuse by the next call on the same stream;
    None allocates for B rows as long as the page table allows. Rows whose splits do not fit come out NaN.
    partition: of partition_decode for the same lengths; None makes one. `metadata_ready`: page_table, context_lens and
    the given partition were written before the last launch without PDL, see kernels.pdl. out: to fill; None makes one.
    first_row [1] int32: the rows stand within q and `out`, [T, H, D] both, from this one on, which the device knows
    alone. Rows of an empty context come last and are not written; a given partition was made with `skip_empty`.
    prefixes: of prefix_decode for these rows; page_table and context_lens are then of what follows each row's prefix.
    variant: window, softcap, sinks, not with prefixes; pages before a window are not read.
    No host sync, no data-dependent launch. Raises ValueError for shapes that do not fit. Split-KV after Flash-Decoding.
    """
    (total, heads, head_dim), kv_heads, batch = q.shape, kv_cache.shape[2], context_lens.shape[0]
    tile, group = decode_tile(head_dim, kv_cache.dtype, q.device, variant.window), heads // kv_heads
    unit = split_size or default_split_size(group)
    check_paged(q, kv_cache, page_table, context_lens, scale)
    if unit % tile.block_n or (first_row is None and total != batch) or not (prefixes is None or variant.is_plain):
        raise ValueError(f"split_size {unit} (tile {tile.block_n}) or {total} queries do not fit")
    out = torch.empty((total, heads, head_dim), dtype=q.dtype, device=q.device) if out is None else out
    if batch == 0:
        return out
    if partition is None:
        # The split kernel reads the partition first, and this one is written by a PDL launch just before it.
        options = {"split_size": split_size, "skip_empty": first_row is not None, "window": variant.window}
        partition = partition_decode(context_lens, kv_heads, group, head_dim, kv_cache.dtype, **options)
        metadata_ready = False
    most_units = -(-min(page_table.shape[1] * kv_cache.shape[3], variant.window or 1 << 30) // unit)
    needs_reduce, programs = most_units > 1 or prefixes is not None, partition.shape[0] - 2 - batch
    partial, stats, capacity = _scratch(out, batch * most_units if needs_reduce else 0, workspace)
    block_d, block_m = max(16, triton.next_power_of_2(head_dim)), max(4, triton.next_power_of_2(group))
    shared: dict[str, Any] = {
        "HEAD_DIM": head_dim, "BLOCK_D": block_d, "GROUP": group, "BLOCK_M": block_m, "GROW_SPLITS": split_size is None,
        "HAS_FIRST": first_row is not None, "PREFIX_ROWS": 0 if prefixes is None else prefixes.tile_rows,
        "METADATA_READY": metadata_ready, **pdl_options(q.device),
    }  # fmt: skip
    first = partition if first_row is None else first_row
    prefix = (partition, partition, partial, stats) if prefixes is None else prefixes[:4]
    _split_kernel[(programs,)](
        q, readable(kv_cache), page_table, context_lens, partition, first, prefix[0], out, partial, stats,
        scale * LOG2_E, batch, kv_heads, capacity, q.stride(0), q.stride(1), *kv_cache.stride()[:3],
        page_table.stride(0), **variant.options(), PAGE=kv_cache.shape[3], BLOCK_N=tile.block_n, UNIT=unit,
        BLOCK_B=block_b(batch), PRECISION=dot_precision(q.dtype), num_warps=tile.warps, num_stages=tile.stages,
        maxnreg=tile.registers, **shared,
    )  # fmt: skip
    if needs_reduce:
        reduce_kernel[(batch, kv_heads)](
            partition, partial, stats, first, *prefix, out, variant.sinks, batch, capacity, programs, kv_heads,
            BLOCK_S=REDUCE_BLOCK, num_warps=reduce_warps(block_m, block_d), **shared,
        )  # fmt: skip
    return out


def _scratch(
    out: torch.Tensor, worst_splits: int, workspace: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Cut the workspace into partial accumulators and (peak, total) pairs; return both and the number of splits."""
    _, heads, head_dim = out.shape
    if worst_splits == 0:
        return out, out, 0
    if workspace is None:
        numel = decode_workspace_numel(worst_splits, heads, head_dim)
        workspace = torch.empty(numel, dtype=torch.float32, device=out.device)
    capacity = min(worst_splits, workspace.numel() // decode_workspace_numel(1, heads, head_dim))
    flat = workspace.view(-1)
    return flat, flat[capacity * heads * head_dim :], capacity
