"""Folds the partial results of decode attention: the last kernel of kernels.paged_decode.

A row's parts are folded one after another in the order of their positions: those of a prefix that it shares with other
rows (kernels.prefix_decode), then its own splits. A row that one program has computed alone is left as it is.
"""

import triton
import triton.language as tl

from kernels.decode_partition import owner, units_per_split
from kernels.paged_tile import finish, fold_part
from kernels.pdl import wait_for_prior_kernel

# Splits, and parts of a prefix, whose partial results are loaded at once.
REDUCE_BLOCK, PREFIX_BLOCK = 8, tl.constexpr(4)


def reduce_warps(block_m: int, block_d: int) -> int:
    """Return the warps of the kernel: with eight, heads of 512 would need more registers than there are."""
    return max(1, min(8 if block_d <= 256 else 16, block_m * block_d // 256))


@triton.jit
def _load_part(partial_ptr, stats_ptr, index, splits, part_rows, row_mask, mask, dims, HEAD_DIM: tl.constexpr):
    keep = row_mask & (index < splits)
    peak = tl.load(stats_ptr + part_rows * 2, mask=keep, other=float("-inf"))
    total = tl.load(stats_ptr + part_rows * 2 + 1, mask=keep, other=0.0)
    part = tl.load(partial_ptr + part_rows[:, None] * HEAD_DIM + dims[None, :], mask=mask & (index < splits), other=0.0)
    return part, peak, total


@triton.jit
def _splits_of(partition_ptr, seq, head, num_seqs, programs, kv_heads, GROW_SPLITS: tl.constexpr):
    """Return the first slot, units and splits of a row, and whether one program has computed all of a kv head's."""
    ends_ptr = partition_ptr + programs + 2
    before = tl.load(ends_ptr + seq - 1, mask=seq > 0, other=0)
    units = (tl.load(ends_ptr + seq) - before) // kv_heads
    total_units = tl.load(ends_ptr + num_seqs - 1)
    per_split = units_per_split(units, GROW_SPLITS)
    splits = (units + per_split - 1) // per_split
    pair = before + head * units
    last = pair + (splits - 1) * per_split
    active = tl.load(partition_ptr)
    owners = tl.maximum(active, 1)
    has_one_owner = (active == 0) | (owner(pair, total_units, owners) == owner(last, total_units, owners))
    slot = before // kv_heads
    return slot, units, splits, has_one_owner


@triton.jit
def _fold_parts(
    partial_ptr, stats_ptr, parts, first_rows, stride, row_mask, mask, dims, acc, peak, total,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Fold so many parts, whose rows are `stride` apart."""
    for start in range(0, parts, BLOCK_S):
        # All loads of a block are issued before its folds, which depend on one another.
        loaded = ()
        for step in tl.static_range(BLOCK_S):
            index = start + step
            part_rows = first_rows + index.to(tl.int64) * stride
            part = _load_part(partial_ptr, stats_ptr, index, parts, part_rows, row_mask, mask, dims, HEAD_DIM)
            loaded = loaded + (part,)  # noqa: RUF005
        for step in tl.static_range(BLOCK_S):
            acc, peak, total = fold_part(acc, peak, total, loaded[step][0], loaded[step][1], loaded[step][2])
    return acc, peak, total


@triton.jit(do_not_specialize=["num_seqs", "capacity", "programs"])
def reduce_kernel(
    partition_ptr, partial_ptr, stats_ptr, first_ptr, prefix_tokens_ptr, prefix_rows_ptr, prefix_partial_ptr,
    prefix_stats_ptr, out_ptr, sinks_ptr, num_seqs, capacity, programs, kv_heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
    GROW_SPLITS: tl.constexpr, HAS_FIRST: tl.constexpr, PREFIX_ROWS: tl.constexpr, USE_PDL: tl.constexpr,
    METADATA_READY: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Fold the parts of one row and kv head. PREFIX_ROWS: the rows of a tile of shared prefixes, 0 without any."""
    if not METADATA_READY:
        wait_for_prior_kernel(USE_PDL)
    seq = tl.program_id(0)
    head = tl.program_id(1)
    slot, units, splits, has_one_owner = _splits_of(partition_ptr, seq, head, num_seqs, programs, kv_heads, GROW_SPLITS)
    first = tl.load(first_ptr) if HAS_FIRST else 0
    prefix_parts = 0
    if PREFIX_ROWS:
        prefix_parts = tl.load(prefix_rows_ptr + seq * 4, mask=tl.load(prefix_tokens_ptr + seq) > 0, other=0)
        has_one_owner = has_one_owner & (prefix_parts == 0)
    if METADATA_READY:
        wait_for_prior_kernel(USE_PDL)
    if has_one_owner | (units == 0):
        # One program computed all splits and has written the result; or the row is none.
        return
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    row_mask = rows < GROUP
    mask = row_mask[:, None] & (dims[None, :] < HEAD_DIM)
    heads = kv_heads * GROUP
    q_heads = head * GROUP + rows
    row = (first + seq).to(tl.int64)
    out_ptrs = out_ptr + (row * heads + q_heads)[:, None] * HEAD_DIM + dims[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # Padding rows stay at 0, because -inf - -inf is NaN.
    peak = tl.where(row_mask, float("-inf"), 0.0)
    total = tl.zeros([BLOCK_M], tl.float32)
    if slot + units > capacity:
        # A workspace too small for the batch must show in the result.
        tl.store(out_ptrs, (acc + float("nan")).to(out_ptr.dtype.element_ty), mask=mask)
        return
    if PREFIX_ROWS:
        item = tl.load(prefix_rows_ptr + seq * 4 + 1)
        place = tl.load(prefix_rows_ptr + seq * 4 + 2) * GROUP
        first_rows = (item * kv_heads + head).to(tl.int64) * PREFIX_ROWS + place + rows
        acc, peak, total = _fold_parts(
            prefix_partial_ptr, prefix_stats_ptr, prefix_parts, first_rows, kv_heads * PREFIX_ROWS, row_mask, mask,
            dims, acc, peak, total, HEAD_DIM, PREFIX_BLOCK,
        )  # fmt: skip
    first_rows = slot.to(tl.int64) * heads + q_heads
    acc, peak, total = _fold_parts(
        partial_ptr, stats_ptr, splits, first_rows, heads, row_mask, mask, dims, acc, peak, total, HEAD_DIM, BLOCK_S
    )
    out = finish(acc, peak, total, sinks_ptr, q_heads, row_mask)
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)
