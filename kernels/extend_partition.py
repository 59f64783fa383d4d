"""Partition of extend attention over programs, computed once a step for all layers: which keys of which query tile.

A query tile is a run of a sequence's new tokens. A program computes one *part* of a query tile: the tiles of keys from
`begin` up to `end`. Where the query tiles of a step are too few for the GPU, those on long contexts are cut along the
keys into several parts, whose partial results a second kernel merges in the order of their positions. The number of
parts follows from the share of the step's work that a sequence has. A query tile that is not cut has one part, whose
program writes the result.

    items [N, 16] int32, an item for each part and kv head, by sequence, query tile and part; WIDTH columns:
    seq | first row of the sequence in q | its new tokens | its context | first token of the tile | begin | end (0: no
    part) | slot of the tile's first partial result, -1 without | part | parts
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

WIDTH = tl.constexpr(16)
SEQ, START, NEW, CONTEXT, FIRST = (tl.constexpr(at) for at in range(5))
BEGIN, END, SLOT, PART, PARTS = (tl.constexpr(at) for at in range(5, 10))
# A part has as many tiles of keys at least: the merge of shorter ones takes longer than they do.
MIN_PART_TILES = 4
# Items that a program of the partition kernel makes, and sequences that it looks at: of up to so many one kernel is
# compiled, which the warm-up loads.
ITEM_BLOCK, SEQ_BLOCK = 16, 256
# Few enough for the interpreter, and enough that query tiles are cut.
PROGRAMS_WITHOUT_GPU = 8


class ExtendPartition(NamedTuple):
    """Items for query tiles of `tile_tokens` tokens and `block_n` keys a tile; at most `slots` partial results for each
    kv head, 0 where nothing can be cut."""

    items: torch.Tensor
    tile_tokens: int
    block_n: int
    slots: int


class GroupItems(NamedTuple):
    """Items of groups of rows that share a prefix, where the partial result of an item has its number; and by row of
    the batch, `rows` [B, 4] int32: parts | item of the first one | row within the tile. Rows of no group are not
    written."""

    items: torch.Tensor
    rows: torch.Tensor


@triton.jit
def _parts(key_tiles, slots, work, MIN_TILES: tl.constexpr):
    """Parts of each query tile of a sequence: its share of the step's work in `slots`, rounded down, so that the parts
    of all tiles that are cut are at most `slots`."""
    return tl.maximum(tl.minimum(slots * key_tiles // work, key_tiles // MIN_TILES), 1)


@triton.jit(do_not_specialize=["num_seqs", "num_items", "slots"])
def _partition_kernel(
    cu_q_ptr, lens_ptr, items_ptr, members_ptr, rows_ptr, num_seqs, num_items, slots,
    TOKENS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, MIN_TILES: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK: tl.constexpr, GROUPED: tl.constexpr, WINDOW: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """GROUPED: sequences are groups of rows that all see the whole context, and every item has a partial result."""
    wait_for_prior_kernel(USE_PDL)
    seqs = tl.arange(0, BLOCK_B)
    is_seq = seqs < num_seqs
    starts = tl.load(cu_q_ptr + seqs, mask=is_seq, other=0)
    news = tl.load(cu_q_ptr + seqs + 1, mask=is_seq, other=0) - starts
    query_tiles = (news + TOKENS - 1) // TOKENS
    key_tiles = (tl.load(lens_ptr + seqs, mask=is_seq, other=0) + BLOCK_N - 1) // BLOCK_N
    work = tl.maximum(tl.sum(query_tiles * key_tiles, 0), 1)
    all_parts = query_tiles * _parts(key_tiles, slots, work, MIN_TILES)
    ends = tl.cumsum(all_parts, 0)
    used = tl.where(all_parts > query_tiles, all_parts, 0)

    item = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_before = ends[None, :] <= item[:, None]
    seq = tl.sum((is_before & is_seq[None, :]).to(tl.int32), 1)
    is_live = seq < num_seqs
    own = item - tl.max(tl.where(is_before, ends[None, :], 0), 1)
    slot = tl.sum(tl.where(is_before, used[None, :], 0), 1)
    start = tl.load(cu_q_ptr + seq, mask=is_live, other=0)
    new = tl.load(cu_q_ptr + seq + 1, mask=is_live, other=0) - start
    context = tl.load(lens_ptr + seq, mask=is_live, other=0)
    tiles = (context + BLOCK_N - 1) // BLOCK_N
    most = _parts(tiles, slots, work, MIN_TILES)
    part = own % most
    slot += own - part
    first = own // most * TOKENS
    position = context - new + first
    # Every row of a tile has a key in the tile of keys that the first row ends in: the last part begins no later.
    common = tiles if GROUPED else position // BLOCK_N + 1
    length = tl.maximum((common + most - 1) // most, 1)
    parts = (common + length - 1) // length
    last = tiles if GROUPED else (tl.minimum(position + TOKENS, context) + BLOCK_N - 1) // BLOCK_N
    begin = part * length
    end = tl.where(part == parts - 1, last, begin + length)
    if WINDOW > 0:
        # There is one part: it begins with the first tile that the first row sees.
        begin = tl.maximum(position - WINDOW + 1, 0) // BLOCK_N
    is_live &= part < parts
    target = items_ptr + item * WIDTH
    fits = item < num_items
    tl.store(target + SEQ, seq, mask=fits)
    tl.store(target + START, start, mask=fits)
    tl.store(target + NEW, new, mask=fits)
    tl.store(target + CONTEXT, context, mask=fits)
    tl.store(target + FIRST, first, mask=fits)
    tl.store(target + BEGIN, begin, mask=fits)
    tl.store(target + END, tl.where(is_live, end, 0), mask=fits)
    tl.store(target + SLOT, tl.where(is_live & (parts > 1), slot, -1), mask=fits)
    tl.store(target + PART, part, mask=fits)
    tl.store(target + PARTS, parts, mask=fits)
    if GROUPED:
        at = tl.arange(0, BLOCK_T)[None, :]
        is_row = (is_live & (part == 0))[:, None] & (at < TOKENS) & (first[:, None] + at < new[:, None])
        row = tl.load(members_ptr + (start + first)[:, None] + at, mask=is_row, other=0)
        tl.store(rows_ptr + row * 4, tl.zeros_like(row) + parts[:, None], mask=is_row)
        tl.store(rows_ptr + row * 4 + 1, tl.zeros_like(row) + item[:, None], mask=is_row)
        tl.store(rows_ptr + row * 4 + 2, tl.zeros_like(row) + at, mask=is_row)


def make_partition(
    cu_q: torch.Tensor, context_lens: torch.Tensor, total: int, kv_heads: int, tile_tokens: int, block_n: int,
    window: int = 0, cut: bool = True,
) -> ExtendPartition:  # fmt: skip
    """Return the partition of sequences with at most `total` new tokens together, cu_q [B + 1] and context_lens [B]
    int32. No host sync: as many items as there can be. With a window nothing is cut: it bounds the keys already; nor
    without `cut`: a row's bits then depend on its own keys alone."""
    full_tiles, slots = total // tile_tokens, _programs(context_lens.device) // kv_heads
    # With a query tile for each program nothing can be cut.
    slots = slots if full_tiles < slots and not window and cut else 0
    sizes = full_tiles, slots, tile_tokens, block_n
    items = _launch(cu_q, context_lens, (cu_q, cu_q), *sizes, is_grouped=False, window=window)
    return ExtendPartition(items, tile_tokens, block_n, slots)


def partition_groups(
    ends: torch.Tensor, lengths: torch.Tensor, members: torch.Tensor, kv_heads: int, tile_tokens: int, block_n: int,
    programs_per_sm: int,
) -> GroupItems:  # fmt: skip
    """Return the partition of groups of rows, as kernels.prefix_decode.SharedPrefixes has them. No host sync."""
    batch, slots = members.shape[0], _programs(members.device) * programs_per_sm // kv_heads
    rows = torch.empty((batch, 4), dtype=torch.int32, device=members.device)
    tiles = batch // tile_tokens
    items = _launch(ends, lengths, (members, rows), tiles, slots, tile_tokens, block_n, is_grouped=True)
    return GroupItems(items, rows)


def _launch(
    cu_q: torch.Tensor, context_lens: torch.Tensor, members: tuple[torch.Tensor, torch.Tensor], full_tiles: int,
    slots: int, tile_tokens: int, block_n: int, is_grouped: bool, window: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Return the items of so many tiles, besides one that is not full for each sequence."""
    batch, device = context_lens.shape[0], context_lens.device
    count = full_tiles + batch + slots
    items = torch.empty((count, WIDTH.value), dtype=torch.int32, device=device)
    _partition_kernel[(triton.cdiv(count, ITEM_BLOCK),)](
        cu_q, context_lens, items, *members, batch, count, slots, TOKENS=tile_tokens,
        BLOCK_T=triton.next_power_of_2(tile_tokens) if is_grouped else 1, BLOCK_N=block_n, MIN_TILES=MIN_PART_TILES,
        BLOCK_B=max(SEQ_BLOCK, triton.next_power_of_2(batch)), BLOCK=ITEM_BLOCK, GROUPED=is_grouped, WINDOW=window,
        num_warps=4, **pdl_options(device),
    )  # fmt: skip
    return items


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return PROGRAMS_WITHOUT_GPU
    return torch.cuda.get_device_properties(device).multi_processor_count
