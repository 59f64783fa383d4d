"""Attention of one new token per sequence over a paged KV cache: split-KV, then a reduce for the rows that need one.

A row's result is defined by splits at absolute positions, whose size depends on the row's own length: each split gets
an online softmax of its own, and the splits are folded one after another. Who computes which split changes no bits, so
the work can be dealt out by the batch: all splits of all (sequence, kv head) pairs form one list, and each program
takes an equal run of it. A program that holds all splits of a pair folds them in registers; the others leave theirs to
the reduce, which folds in the same order by the same instructions.

A tile packs the query heads that share a kv head, so each K/V byte is read once. The grid depends on shapes alone: it
can be captured in a CUDA graph, and each program finds its run from context_lens on the device. The caller has written
the new token's K/V before.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.paged_tile import LOG2_E, attend_tile, check_paged, dot_precision, load_kv_tile, on_hopper, page_ids

MIN_SPLIT_TOKENS = 128
# Chosen to fill the interpreter's time budget: several splits per program, and runs that end inside a sequence.
PROGRAMS_WITHOUT_GPU = 8
# Splits whose partial results the reduce loads at once.
REDUCE_BLOCK = 16


class DecodeTile(NamedTuple):
    """Launch parameters: tokens per tile, warps, pipeline stages, programs per multiprocessor."""

    block_n: int
    warps: int
    stages: int
    programs_per_sm: int

    @property
    def registers(self) -> int:
        """Registers of a thread when that many programs fill a multiprocessor's 65,536."""
        return min(248, 65536 // (self.programs_per_sm * self.warps * 32) // 8 * 8)


# Keyed by (padded head dim, bytes per element).
TILES = {
    (64, 2): DecodeTile(64, 4, 4, 4),
    (128, 2): DecodeTile(32, 4, 3, 4),
    (256, 2): DecodeTile(32, 4, 3, 2),
    (64, 4): DecodeTile(32, 4, 3, 3),
    (128, 4): DecodeTile(32, 4, 3, 2),
    (256, 4): DecodeTile(16, 4, 3, 2),
}
INTERPRETER_TILE = DecodeTile(32, 4, 1, 1)


def decode_tile(head_dim: int, dtype: torch.dtype, device: torch.device) -> DecodeTile:
    """The tile for a head dim up to 256. CPU tensors only ever reach the interpreter, which wants small tiles."""
    if device.type == "cpu":
        return INTERPRETER_TILE
    return TILES[max(64, triton.next_power_of_2(head_dim)), dtype.itemsize]


def default_split_size(group: int) -> int:
    """Tokens of the smallest splits for `group` query heads per kv head. A partial is as big as `group` tokens."""
    return max(MIN_SPLIT_TOKENS, 32 * triton.next_power_of_2(group))


def decode_workspace_numel(splits: int, heads: int, head_dim: int) -> int:
    """fp32 elements that `splits` splits need, summed over the rows of a batch.

    A row has at most ceil(context / split_size) splits, and one at least; split_size may be default_split_size.
    """
    return splits * heads * (head_dim + 2)


@triton.jit
def _split_size(lens, SPLIT: tl.constexpr, GROWS: tl.constexpr):
    """Tokens per split of rows of these lengths: SPLIT for 8 splits, twice that up to 16, then four times SPLIT."""
    if GROWS:
        return tl.where(lens <= 8 * SPLIT, SPLIT, tl.where(lens <= 32 * SPLIT, 2 * SPLIT, 4 * SPLIT))
    return tl.zeros_like(lens) + SPLIT


def _most_splits(tokens: int, split: int, grows: bool) -> int:
    """The most splits that a row of at most `tokens` tokens can have, by the rule of _split_size."""
    if not grows:
        return -(-tokens // split)
    sizes = ((min(tokens, 8 * split), split), (min(tokens, 32 * split), 2 * split), (tokens, 4 * split))
    return max(-(-longest // size) for longest, size in sizes)


@triton.jit
def _splits_per_seq(lens_ptr, num_seqs, SPLIT: tl.constexpr, GROWS: tl.constexpr, BLOCK_B: tl.constexpr):
    seqs = tl.arange(0, BLOCK_B)
    lens = tl.load(lens_ptr + seqs, mask=seqs < num_seqs, other=0)
    size = _split_size(lens, SPLIT, GROWS)
    # An empty row counts one split, whose tile loop runs zero times and which stores zeros.
    return tl.where(seqs < num_seqs, tl.maximum((lens + size - 1) // size, 1), 0)


@triton.jit
def _fold(acc, peak, total, part, part_peak, part_total):
    """Add one split to the splits before it; explicit fused multiply-adds, so that both callers round alike."""
    new_peak = tl.maximum(peak, part_peak)
    decay = tl.exp2(peak - new_peak)
    weight = tl.exp2(part_peak - new_peak)
    new_total = tl.fma(total, decay, part_total * weight)
    return tl.fma(acc, tl.zeros_like(acc) + decay[:, None], part * weight[:, None]), new_peak, new_total


@triton.jit(do_not_specialize=["num_seqs", "capacity", "stride_table"])
def _split_kernel(
    q_ptr, cache_ptr, table_ptr, lens_ptr, out_ptr, partial_ptr, stats_ptr, scale_log2, num_seqs, kv_heads, capacity,
    stride_q_seq, stride_q_head, stride_page, stride_value, stride_head, stride_table,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, GROWS: tl.constexpr, BLOCK_B: tl.constexpr, OVERLAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        # The reduce may take its place on the multiprocessors; it waits there until this kernel has ended.
        gdc_launch_dependents()
    counts = _splits_per_seq(lens_ptr, num_seqs, SPLIT, GROWS, BLOCK_B)
    # The list: sequence by sequence, in it head by head, in it split by split.
    ends = tl.cumsum(counts, 0) * kv_heads
    pieces = tl.sum(counts, 0) * kv_heads
    run = (pieces + tl.num_programs(0) - 1) // tl.num_programs(0)
    piece = tl.program_id(0) * run
    run_end = tl.minimum(piece + run, pieces)
    tokens = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    rows = tl.arange(0, BLOCK_M)
    row_mask = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    while piece < run_end:
        seq = tl.sum((ends <= piece).to(tl.int32), 0)
        first = tl.max(tl.where(ends <= piece, ends, 0), 0)
        context = tl.load(lens_ptr + seq)
        size = _split_size(context, SPLIT, GROWS)
        splits = tl.maximum((context + size - 1) // size, 1)
        head = (piece - first) // splits
        split = (piece - first) % splits
        taken = tl.minimum(splits - split, run_end - piece)
        whole = taken == splits
        begin = split * size
        end = tl.minimum(begin + taken * size, context)
        split_end = tl.minimum(begin + size, end)
        slot = first // kv_heads + split
        piece += taken

        table_row = table_ptr + seq.to(tl.int64) * stride_table
        head_ptr = cache_ptr + head.to(tl.int64) * stride_head
        q_heads = head * GROUP + rows
        q_ptrs = q_ptr + seq.to(tl.int64) * stride_q_seq + q_heads[:, None] * stride_q_head + dims[None, :]
        q = tl.load(q_ptrs, mask=row_mask, other=0.0)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        row_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        row_peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_total = tl.zeros([BLOCK_M], tl.float32)
        ids = page_ids(table_row, begin, end, PAGE, BLOCK_N)
        for start in range(begin, end, BLOCK_N):
            next_ids = page_ids(table_row, start + BLOCK_N, end, PAGE, BLOCK_N)
            k, v = load_kv_tile(
                head_ptr, ids, start, end, stride_page, stride_value, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, True
            )
            keep = start + tokens[None, :] < end
            acc, peak, total = attend_tile(q, k, v, keep, acc, peak, total, scale_log2, True, PRECISION)
            ids = next_ids
            if start + BLOCK_N >= split_end:
                if whole:
                    row_acc, row_peak, row_total = _fold(row_acc, row_peak, row_total, acc, peak, total)
                else:
                    fits = slot < capacity
                    part_rows = slot.to(tl.int64) * (kv_heads * GROUP) + q_heads
                    tl.store(partial_ptr + part_rows[:, None] * HEAD_DIM + dims[None, :], acc, mask=row_mask & fits)
                    tl.store(stats_ptr + part_rows * 2, peak, mask=(rows < GROUP) & fits)
                    tl.store(stats_ptr + part_rows * 2 + 1, total, mask=(rows < GROUP) & fits)
                slot += 1
                split_end = tl.minimum(split_end + size, end)
                acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)

        if whole:
            out = row_acc / tl.where(row_total > 0.0, row_total, 1.0)[:, None]
            out_rows = seq.to(tl.int64) * (kv_heads * GROUP) + q_heads
            out_ptrs = out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :]
            tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=row_mask)


@triton.jit(do_not_specialize=["num_seqs", "capacity", "programs"])
def _reduce_kernel(
    lens_ptr, partial_ptr, stats_ptr, out_ptr, num_seqs, capacity, programs, kv_heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, SPLIT: tl.constexpr,
    GROWS: tl.constexpr, BLOCK_B: tl.constexpr, OVERLAP: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    head = tl.program_id(1)
    counts = _splits_per_seq(lens_ptr, num_seqs, SPLIT, GROWS, BLOCK_B)
    seqs = tl.arange(0, BLOCK_B)
    first_slot = tl.sum(tl.where(seqs < seq, counts, 0), 0)
    splits = tl.sum(tl.where(seqs == seq, counts, 0), 0)
    run = (tl.sum(counts, 0) * kv_heads + programs - 1) // programs
    first = first_slot * kv_heads + head * splits
    if OVERLAP:
        # Ahead of every return: whatever follows this kernel must find the other one ended as well.
        gdc_wait()
    if first // run == (first + splits - 1) // run:
        # One program had them all and has written the rows.
        return
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    mask = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    heads = kv_heads * GROUP
    q_heads = head * GROUP + rows
    out_ptrs = out_ptr + (seq.to(tl.int64) * heads + q_heads)[:, None] * HEAD_DIM + dims[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # Rows of padding stay at 0: -inf - -inf would be NaN.
    peak = tl.where(rows < GROUP, float("-inf"), 0.0)
    total = tl.zeros([BLOCK_M], tl.float32)
    if first_slot + splits > capacity:
        # A workspace too small for the batch must not pass for an answer.
        tl.store(out_ptrs, (acc + float("nan")).to(out_ptr.dtype.element_ty), mask=mask)
        return
    for start in range(0, splits, BLOCK_S):
        # All loads of a block are independent of one another; the folds after them are not.
        for step in tl.static_range(BLOCK_S):
            index = start + step
            part_rows = (first_slot + index).to(tl.int64) * heads + q_heads
            keep = (rows < GROUP) & (index < splits)
            part_peak = tl.load(stats_ptr + part_rows * 2, mask=keep, other=float("-inf"))
            part_total = tl.load(stats_ptr + part_rows * 2 + 1, mask=keep, other=0.0)
            part_ptrs = partial_ptr + part_rows[:, None] * HEAD_DIM + dims[None, :]
            part = tl.load(part_ptrs, mask=mask & (index < splits), other=0.0)
            acc, peak, total = _fold(acc, peak, total, part, part_peak, part_total)
    out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def paged_decode(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, context_lens: torch.Tensor, scale: float, *,
    split_size: int | None = None, workspace: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return softmax(q K^T * scale) V per sequence, a fresh [B, H, D] tensor of q's dtype; no context gives zeros.

    q [B, H, D] fp32/fp16/bf16, last dim contiguous. kv_cache [pages, 2, Hkv, PAGE, D] of q's dtype, page 0 a dummy.
    page_table [B, max_pages] int32, context_lens [B] int32, the new token included; scale > 0.
    split_size: tokens per split, a multiple of the tile; None lets it grow with a row's context, from
    default_split_size. It decides the bits, so keep it fixed for an engine's life.
    workspace: fp32 scratch of decode_workspace_numel(...) elements, free for reuse by the next call on the same stream;
    None allocates for B rows as long as the page table allows. Rows whose splits do not fit come out NaN.
    No host sync, no data-dependent launch. Raises ValueError for shapes that do not fit together.
    Split-KV after Flash-Decoding.
    """
    batch, heads, head_dim = q.shape
    page = kv_cache.shape[3]
    tile = decode_tile(head_dim, q.dtype, q.device)
    split, grows = split_size or default_split_size(heads // kv_cache.shape[2]), split_size is None
    check_paged(q, kv_cache, page_table, context_lens, scale)
    if split % tile.block_n or page_table.shape[0] != batch:
        raise ValueError(f"split_size {split} (tile {tile.block_n}) or {batch} queries do not fit")
    out = torch.empty((batch, heads, head_dim), dtype=q.dtype, device=q.device)
    if batch == 0:
        return out
    kv_heads, max_splits = kv_cache.shape[2], _most_splits(page_table.shape[1] * page, split, grows)
    partial, stats, capacity = _scratch(out, batch * max_splits if max_splits > 1 else 0, workspace)
    programs = min(batch * kv_heads * max_splits, _resident_programs(q.device, tile.programs_per_sm))
    group = heads // kv_heads
    overlap = max_splits > 1 and on_hopper(q.device)
    shared: dict[str, Any] = {
        "HEAD_DIM": head_dim, "BLOCK_D": max(16, triton.next_power_of_2(head_dim)), "GROUP": group,
        "BLOCK_M": triton.next_power_of_2(group), "SPLIT": split, "GROWS": grows,
        "BLOCK_B": max(256, triton.next_power_of_2(batch)), "OVERLAP": overlap,
    }  # fmt: skip
    _split_kernel[(programs,)](
        q, kv_cache, page_table, context_lens, out, partial, stats, scale * LOG2_E, batch, kv_heads, capacity,
        q.stride(0), q.stride(1), kv_cache.stride(0), kv_cache.stride(1), kv_cache.stride(2), page_table.stride(0),
        PAGE=page, BLOCK_N=tile.block_n, PRECISION=dot_precision(q.dtype), num_warps=tile.warps,
        num_stages=tile.stages, maxnreg=tile.registers, **shared,
    )  # fmt: skip
    if max_splits > 1:
        _reduce_kernel[(batch, kv_heads)](
            context_lens, partial, stats, out, batch, capacity, programs, kv_heads, BLOCK_S=REDUCE_BLOCK, num_warps=4,
            **shared, **({"launch_pdl": True} if overlap else {}),
        )  # fmt: skip
    return out


def paged_decode_reference(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, context_lens: torch.Tensor, scale: float, *,
    split_size: int | None = None, workspace: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """paged_decode in plain torch: fp32 maths (fp64 for fp64 inputs), one softmax per row; the options are ignored."""
    heads, page = q.shape[1], kv_cache.shape[3]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.zeros_like(q)
    for seq, length in enumerate(context_lens.tolist()):
        if length == 0:
            continue
        pages = page_table[seq, : -(-length // page)].long()
        # [pages, 2, Hkv, PAGE, D] -> [2, Hkv, tokens, D]
        kv = kv_cache[pages].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :length].to(wide)
        k, v = kv.repeat_interleave(heads // kv_cache.shape[2], dim=1)
        scores = torch.einsum("hd,hnd->hn", q[seq].to(wide), k) * scale
        out[seq] = torch.einsum("hn,hnd->hd", scores.softmax(-1), v).to(q.dtype)
    return out


def _resident_programs(device: torch.device, programs_per_sm: int) -> int:
    if device.type != "cuda":
        return PROGRAMS_WITHOUT_GPU
    return torch.cuda.get_device_properties(device).multi_processor_count * programs_per_sm


def _scratch(
    out: torch.Tensor, worst_splits: int, workspace: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Cut the workspace into partial accumulators and (peak, total) pairs; return both and the number of slots."""
    _, heads, head_dim = out.shape
    if worst_splits == 0:
        return out, out, 0
    if workspace is None:
        numel = decode_workspace_numel(worst_splits, heads, head_dim)
        workspace = torch.empty(numel, dtype=torch.float32, device=out.device)
    capacity = min(worst_splits, workspace.numel() // decode_workspace_numel(1, heads, head_dim))
    flat = workspace.view(-1)
    return flat, flat[capacity * heads * head_dim :], capacity
