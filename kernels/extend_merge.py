"""Merges the partial results of query tiles that extend attention has cut along their keys (kernels.extend_partition).

A slot of the scratch holds one part of one query tile: for each kv head and row its accumulator and (peak, total), in
the domain of attend_tile. The parts of a tile lie one after another. They are folded in that order, so that the result
does not depend on which program ends first.
"""

import torch
import triton
import triton.language as tl

from kernels.extend_partition import FIRST, NEW, PART, PARTS, SLOT, START, WIDTH, ExtendPartition
from kernels.paged_tile import finish, fold_part
from kernels.pdl import pdl_options, wait_for_prior_kernel

# Rows that a program merges at a time, and parts whose loads are issued at once.
MERGE_ROWS, MERGE_PARTS = 16, 4


@triton.jit
def _merge_kernel(
    items_ptr, partial_ptr, stats_ptr, out_ptr, sinks_ptr, kv_heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_S: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL)
    head = tl.program_id(0)
    item = items_ptr + tl.program_id(1) * WIDTH
    slot = tl.load(item + SLOT)
    if slot < 0:
        return
    parts = tl.load(item + PARTS)
    first = tl.load(item + FIRST)
    new_tokens = tl.load(item + NEW)
    start = tl.load(item + START)
    # The programs of a tile's parts share its rows.
    share = (ROWS + parts - 1) // parts
    begin = tl.load(item + PART) * share
    end = tl.minimum(begin + share, TOKENS * GROUP)
    dims = tl.arange(0, BLOCK_D)
    for at in range(begin, end, BLOCK):
        rows = at + tl.arange(0, BLOCK)
        local = first + rows // GROUP
        keep = (rows < end) & (local < new_tokens)
        mask = keep[:, None] & (dims[None, :] < HEAD_DIM)
        acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        # Rows that are none stay at 0, because -inf - -inf is NaN.
        peak = tl.where(keep, float("-inf"), 0.0)
        total = tl.zeros([BLOCK], tl.float32)
        for part in range(0, parts, BLOCK_S):
            # All loads of a block are issued before its folds, which depend on one another.
            loaded = ()
            for step in tl.static_range(BLOCK_S):
                is_part = part + step < parts
                place = ((slot + part + step) * kv_heads + head).to(tl.int64) * ROWS + rows
                own_peak = tl.load(stats_ptr + place * 2, mask=keep & is_part, other=float("-inf"))
                own_total = tl.load(stats_ptr + place * 2 + 1, mask=keep & is_part, other=0.0)
                own_ptrs = partial_ptr + place[:, None] * HEAD_DIM + dims[None, :]
                loaded = loaded + ((tl.load(own_ptrs, mask=mask & is_part, other=0.0), own_peak, own_total),)  # noqa: RUF005
            for step in tl.static_range(BLOCK_S):
                acc, peak, total = fold_part(acc, peak, total, loaded[step][0], loaded[step][1], loaded[step][2])
        q_heads = head * GROUP + rows % GROUP
        out = finish(acc, peak, total, sinks_ptr, q_heads, keep)
        out_rows = (start + local).to(tl.int64) * (kv_heads * GROUP) + q_heads
        out_ptrs = out_ptr + out_rows[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def scratch(partition: ExtendPartition, kv_heads: int, rows: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return partial accumulators [slots, kv_heads, rows, head_dim] and (peak, total) pairs, fp32 and flat."""
    device, count = partition.items.device, max(1, partition.slots) * kv_heads * rows
    numbers = torch.empty(count * (head_dim + 2), dtype=torch.float32, device=device)
    return numbers, numbers[count * head_dim :]


def merge_parts(
    partition: ExtendPartition, partial: torch.Tensor, stats: torch.Tensor, out: torch.Tensor, kv_heads: int, rows: int,
    sinks: torch.Tensor | None,
) -> None:  # fmt: skip
    """Write the rows of `out` [T, H, D] whose query tiles, of `rows` rows each, were cut; sinks [H] as in Variant."""
    _, heads, head_dim = out.shape
    _merge_kernel[(kv_heads, partition.items.shape[0])](
        partition.items, partial, stats, out, sinks, kv_heads, HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)), GROUP=heads // kv_heads, ROWS=rows,
        TOKENS=partition.tile_tokens, BLOCK=MERGE_ROWS, BLOCK_S=MERGE_PARTS, num_warps=4, **pdl_options(out.device),
    )  # fmt: skip
