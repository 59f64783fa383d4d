"""Attention of one new token per sequence over a paged KV cache: split-KV with a fixed split size, then a reduce.

A work item is (sequence, kv head, split of `split_size` tokens); its tile packs the query heads that share the kv head,
so each K/V byte is read once. Cuts depend on absolute positions alone, never on the batch, so a row's bits
do not depend on its neighbours. The grid depends on shapes alone: it can be captured in a CUDA graph, and each program
finds its items from context_lens on the device. The caller has written the new token's K/V before.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.paged_tile import LOG2_E, attend_tile, check_paged, dot_precision, load_kv_tile, page_ids

MIN_SPLIT_TOKENS = 256
# Chosen to fill the interpreter's time budget: several items per program, so that the stride is exercised.
PROGRAMS_WITHOUT_GPU = 8


class DecodeTile(NamedTuple):
    """Launch parameters: tokens per tile, warps, pipeline stages, programs per multiprocessor."""

    block_n: int
    warps: int
    stages: int
    programs_per_sm: int


# Keyed by (padded head dim, bytes per element).
TILES = {
    (64, 2): DecodeTile(64, 4, 4, 4),
    (128, 2): DecodeTile(64, 4, 3, 3),
    (256, 2): DecodeTile(32, 4, 3, 2),
    (64, 4): DecodeTile(32, 4, 3, 4),
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
    """Tokens per split for `group` query heads per kv head: keeps the partial results near 3 % of the KV traffic."""
    return max(MIN_SPLIT_TOKENS, 64 * triton.next_power_of_2(group))


def decode_workspace_numel(splits: int, heads: int, head_dim: int) -> int:
    """fp32 elements that `splits` splits need, summed over the rows of a batch (ceil(context / split_size) each)."""
    return splits * heads * (head_dim + 2)


@triton.jit
def _splits_per_seq(lens_ptr, num_seqs, SPLIT: tl.constexpr, BLOCK_B: tl.constexpr):
    seqs = tl.arange(0, BLOCK_B)
    lens = tl.load(lens_ptr + seqs, mask=seqs < num_seqs, other=0)
    # An empty row counts one split, whose tile loop runs zero times and which stores zeros.
    return tl.where(seqs < num_seqs, tl.maximum((lens + SPLIT - 1) // SPLIT, 1), 0)


@triton.jit(do_not_specialize=["num_seqs", "capacity"])
def _split_kernel(
    q_ptr, cache_ptr, table_ptr, lens_ptr, out_ptr, partial_ptr, stats_ptr, scale_log2, num_seqs, kv_heads, capacity,
    stride_q_seq, stride_q_head, stride_page, stride_value, stride_head, stride_table,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLIT: tl.constexpr, BLOCK_B: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    counts = _splits_per_seq(lens_ptr, num_seqs, SPLIT, BLOCK_B)
    ends = tl.cumsum(counts, 0)
    items = tl.sum(counts, 0) * kv_heads
    tokens = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    rows = tl.arange(0, BLOCK_M)
    row_mask = (rows[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        # items: heads fastest, then the splits of sequence 0, those of sequence 1, ...
        head = item % kv_heads
        slot = item // kv_heads
        seq = tl.sum((ends <= slot).to(tl.int32), 0)
        first_slot = tl.max(tl.where(ends <= slot, ends, 0), 0)
        context = tl.load(lens_ptr + seq)
        begin = (slot - first_slot) * SPLIT
        end = tl.minimum(begin + SPLIT, context)

        table_row = table_ptr + seq.to(tl.int64) * stride_table
        head_ptr = cache_ptr + head.to(tl.int64) * stride_head
        q_heads = head * GROUP + rows
        q_ptrs = q_ptr + seq.to(tl.int64) * stride_q_seq + q_heads[:, None] * stride_q_head + dims[None, :]
        q = tl.load(q_ptrs, mask=row_mask, other=0.0)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        ids = page_ids(table_row, begin, end, PAGE, BLOCK_N)
        for start in range(begin, end, BLOCK_N):
            next_ids = page_ids(table_row, start + BLOCK_N, end, PAGE, BLOCK_N)
            k, v = load_kv_tile(
                head_ptr, ids, start, end, stride_page, stride_value, HEAD_DIM, BLOCK_D, PAGE, BLOCK_N, True
            )
            keep = start + tokens[None, :] < end
            acc, peak, total = attend_tile(q, k, v, keep, acc, peak, total, scale_log2, True, PRECISION)
            ids = next_ids

        if context <= SPLIT:
            out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
            out_rows = seq.to(tl.int64) * (kv_heads * GROUP) + q_heads
            out_ptrs = out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :]
            tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=row_mask)
        else:
            fits = slot < capacity
            part_rows = slot.to(tl.int64) * (kv_heads * GROUP) + q_heads
            tl.store(partial_ptr + part_rows[:, None] * HEAD_DIM + dims[None, :], acc, mask=row_mask & fits)
            tl.store(stats_ptr + part_rows * 2, peak, mask=(rows < GROUP) & fits)
            tl.store(stats_ptr + part_rows * 2 + 1, total, mask=(rows < GROUP) & fits)


@triton.jit(do_not_specialize=["num_seqs", "capacity"])
def _reduce_kernel(
    lens_ptr, partial_ptr, stats_ptr, out_ptr, num_seqs, capacity,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    head = tl.program_id(1)
    splits = (tl.load(lens_ptr + seq) + SPLIT - 1) // SPLIT
    if splits <= 1:
        return
    counts = _splits_per_seq(lens_ptr, num_seqs, SPLIT, BLOCK_B)
    first_slot = tl.sum(tl.where(tl.arange(0, BLOCK_B) < seq, counts, 0), 0)
    dims = tl.arange(0, BLOCK_D)
    out_ptrs = out_ptr + (seq.to(tl.int64) * HEADS + head) * HEAD_DIM + dims
    if first_slot + splits > capacity:
        # A workspace too small for the batch must not pass for an answer.
        tl.store(out_ptrs, tl.full([BLOCK_D], float("nan"), out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)
        return
    acc = tl.zeros([BLOCK_D], tl.float32)
    peak = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    # Blocks of BLOCK_S splits in ascending order, whatever the batch: the sum's order is the row's own.
    for start in range(0, splits, BLOCK_S):
        index = start + tl.arange(0, BLOCK_S)
        keep = index < splits
        part_rows = (first_slot + index).to(tl.int64) * HEADS + head
        part_peak = tl.load(stats_ptr + part_rows * 2, mask=keep, other=float("-inf"))
        part_total = tl.load(stats_ptr + part_rows * 2 + 1, mask=keep, other=0.0)
        part_mask = keep[:, None] & (dims[None, :] < HEAD_DIM)
        part = tl.load(partial_ptr + part_rows[:, None] * HEAD_DIM + dims[None, :], mask=part_mask, other=0.0)
        new_peak = tl.maximum(peak, tl.max(part_peak, 0))
        weights = tl.exp2(part_peak - new_peak)
        decay = tl.exp2(peak - new_peak)
        acc = acc * decay + tl.sum(part * weights[:, None], 0)
        total = total * decay + tl.sum(part_total * weights, 0)
        peak = new_peak
    tl.store(out_ptrs, (acc / total).to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)


def paged_decode(
    q: torch.Tensor, kv_cache: torch.Tensor, page_table: torch.Tensor, context_lens: torch.Tensor, scale: float, *,
    split_size: int | None = None, workspace: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return softmax(q K^T * scale) V per sequence, a fresh [B, H, D] tensor of q's dtype; no context gives zeros.

    q [B, H, D] fp32/fp16/bf16, last dim contiguous. kv_cache [pages, 2, Hkv, PAGE, D] of q's dtype, page 0 a dummy.
    page_table [B, max_pages] int32, context_lens [B] int32, the new token included; scale > 0.
    split_size: tokens per split, a multiple of the tile; it decides the bits, so keep it fixed for an engine's life.
    workspace: fp32 scratch of decode_workspace_numel(...) elements, free for reuse by the next call on the same stream;
    None allocates the worst case, B * max_pages * PAGE / split_size splits. Rows whose splits do not fit come out NaN.
    No host sync, no data-dependent launch. Raises ValueError for shapes that do not fit together.
    Split-KV after Flash-Decoding.
    """
    batch, heads, head_dim = q.shape
    page = kv_cache.shape[3]
    tile = decode_tile(head_dim, q.dtype, q.device)
    split = split_size or default_split_size(heads // kv_cache.shape[2])
    check_paged(q, kv_cache, page_table, context_lens, scale)
    if split % tile.block_n or page_table.shape[0] != batch:
        raise ValueError(f"split_size {split} (tile {tile.block_n}) or {batch} queries do not fit")
    out = torch.empty((batch, heads, head_dim), dtype=q.dtype, device=q.device)
    if batch == 0:
        return out
    kv_heads, max_splits = kv_cache.shape[2], -(-page_table.shape[1] * page // split)
    group, block_d = heads // kv_heads, max(16, triton.next_power_of_2(head_dim))
    partial, stats, capacity = _scratch(out, batch * max_splits if max_splits > 1 else 0, workspace)
    block_b = max(256, triton.next_power_of_2(batch))
    programs = min(batch * kv_heads * max_splits, _resident_programs(q.device, tile.programs_per_sm))
    _split_kernel[(programs,)](
        q, kv_cache, page_table, context_lens, out, partial, stats, scale * LOG2_E, batch, kv_heads, capacity,
        q.stride(0), q.stride(1), kv_cache.stride(0), kv_cache.stride(1), kv_cache.stride(2), page_table.stride(0),
        HEAD_DIM=head_dim, BLOCK_D=block_d, GROUP=group, BLOCK_M=triton.next_power_of_2(group), PAGE=page,
        BLOCK_N=tile.block_n, SPLIT=split, BLOCK_B=block_b, PRECISION=dot_precision(q.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if max_splits > 1:
        _reduce_kernel[(batch, heads)](
            context_lens, partial, stats, out, batch, capacity, HEADS=heads, HEAD_DIM=head_dim, BLOCK_D=block_d,
            SPLIT=split, BLOCK_S=16, BLOCK_B=block_b, num_warps=4,
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
