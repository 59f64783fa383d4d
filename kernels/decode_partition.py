"""Partition of decode attention over programs: equal shares of the batch's work, computed once a step for all layers.

A row's context is a number of units of tokens. Its splits are one or more whole units long, depending on the row's own
length: they define the result's bits, while the partition only decides which program computes them. The units of all
(sequence, kv head) pairs form one list, ordered by sequence, then by head. Each program is assigned a range of equal
length and computes the splits that start in it. Where there are more splits than programs, only as many programs are
active as can have equally many splits; the ranges of the others are empty. Where rows are of such similar length that
ranges of whole pairs take no longer, whole pairs are assigned, which saves the reduce kernel.

    partition [1 + programs + 1 + B] int32: active programs, 0 where whole pairs are assigned | start of each
    program's range, and the end of the last | end of each row's units over all heads
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.paged_tile import tile_key
from kernels.pdl import pdl_options, wait_for_prior_kernel

MIN_SPLIT_TOKENS = 128
# Few enough for the interpreter that programs have several splits and ranges end inside a sequence.
PROGRAMS_WITHOUT_GPU = 8


class DecodeTile(NamedTuple):
    """Launch parameters: tokens per tile, warps, pipeline stages, programs per multiprocessor."""

    block_n: int
    warps: int
    stages: int
    programs_per_sm: int

    @property
    def registers(self) -> int:
        """Registers of a thread if `programs_per_sm` programs share a multiprocessor's 65,536."""
        return min(248, 65536 // (self.programs_per_sm * self.warps * 32) // 8 * 8)


# Keyed by tile_key, of the type of the cache.
TILES = {
    (64, 2): DecodeTile(64, 4, 4, 3),
    (128, 2): DecodeTile(32, 4, 3, 4),
    (256, 2): DecodeTile(32, 4, 3, 2),
    (512, 2): DecodeTile(16, 4, 3, 2),
    (64, 1): DecodeTile(64, 4, 4, 3),
    (128, 1): DecodeTile(32, 4, 4, 3),
    (256, 1): DecodeTile(32, 4, 3, 2),
    (512, 1): DecodeTile(16, 4, 3, 2),
    (64, 4): DecodeTile(32, 4, 3, 3),
    (128, 4): DecodeTile(32, 4, 3, 2),
    (256, 4): DecodeTile(16, 4, 3, 2),
    (512, 4): DecodeTile(16, 8, 2, 1),
}
INTERPRETER_TILE = DecodeTile(32, 4, 1, 1)


def decode_tile(head_dim: int, dtype: torch.dtype, device: torch.device, window: int = 0) -> DecodeTile:
    """Return the tile for a head dim up to MOST_DIMS and a cache of `dtype`. CPU tensors run in the interpreter, which
    needs small tiles."""
    if device.type == "cpu":
        return INTERPRETER_TILE
    tile = TILES[tile_key(head_dim, dtype)]
    # With a window the registers of a quarter of a multiprocessor do not suffice.
    return tile._replace(programs_per_sm=min(tile.programs_per_sm, 3)) if window else tile


def default_split_size(group: int) -> int:
    """Return the tokens of a unit for `group` query heads per kv head; a partial is as large as `group` tokens."""
    return max(MIN_SPLIT_TOKENS, 32 * triton.next_power_of_2(group))


@triton.jit
def units_per_split(units, GROW_SPLITS: tl.constexpr):
    """Units per split for rows of `units` units: 1, then 2 and 4 for long rows, which bounds the splits to reduce."""
    if GROW_SPLITS:
        return tl.where(units <= 8, 1, tl.where(units <= 64, 2, 4))
    return tl.zeros_like(units) + 1


@triton.jit
def row_units(context, UNIT: tl.constexpr, WINDOW: tl.constexpr):
    """Units of rows of `context` tokens, counted from the first token that is seen; an empty row counts as one."""
    seen = tl.minimum(context, WINDOW) if WINDOW > 0 else context
    return tl.maximum((seen + UNIT - 1) // UNIT, 1)


@triton.jit
def _range_start(program, units, programs):
    """First unit of a program's range; the first units % programs ranges are one unit longer than the others."""
    return program * (units // programs) + tl.minimum(program, units % programs)


@triton.jit(do_not_specialize=["num_seqs", "programs"])
def _partition_kernel(
    lens_ptr, partition_ptr, num_seqs, programs, kv_heads,
    UNIT: tl.constexpr, GROW_SPLITS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr,
    SKIP_EMPTY: tl.constexpr, USE_PDL: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL)
    seqs = tl.arange(0, BLOCK_B)
    is_row = seqs < num_seqs
    lens = tl.load(lens_ptr + seqs, mask=is_row, other=0)
    # An empty row counts as one unit, whose tile loop runs zero times and which stores zeros; or as no row at all.
    is_row = is_row & (lens > 0) if SKIP_EMPTY else is_row
    units = tl.where(is_row, row_units(lens, UNIT, WINDOW), 0)
    ends_ptr = partition_ptr + programs + 2
    tl.store(ends_ptr + seqs, tl.cumsum(units, 0) * kv_heads, mask=seqs < num_seqs)
    total = tl.sum(units, 0) * kv_heads
    pairs = tl.sum(is_row.to(tl.int32), 0) * kv_heads
    longest = tl.max(units, 0)
    # Fewer pairs than programs still saturate the memory if at least a third of the programs has one.
    are_uniform = (pairs <= programs) & (pairs * 3 >= programs) & (longest * pairs * 8 <= total * 9)
    whole_pairs = are_uniform | ((pairs + programs - 1) // programs * longest * programs * 16 <= total * 17)
    per_split = units_per_split(units, GROW_SPLITS)
    splits = tl.sum((units + per_split - 1) // per_split, 0) * kv_heads
    share = tl.maximum((splits + programs - 1) // programs, 1)
    # Fewer, longer ranges could give one program two splits where every program could have one; allowed only where each
    # program has several, or all splits are whole.
    can_idle_programs = (share > 1) | (tl.max(per_split, 0) * splits == total)
    active = tl.maximum(tl.where(can_idle_programs, (splits + share - 1) // share, programs), 1)
    program = tl.arange(0, BLOCK_P)
    bounds = tl.minimum(_range_start(program, total, active), total)
    tl.debug_barrier()
    if whole_pairs:
        pair = _range_start(program, pairs, programs)
        seq = pair // kv_heads
        before = tl.load(ends_ptr + seq - 1, mask=(seq > 0) & (pair < pairs), other=0)
        end = tl.load(ends_ptr + seq, mask=pair < pairs, other=0)
        bounds = tl.where(pair < pairs, before + pair % kv_heads * ((end - before) // kv_heads), total)
        active = 0
    tl.store(partition_ptr, active)
    tl.store(partition_ptr + 1 + program, bounds, mask=program <= programs)


@triton.jit
def owner(unit, units, programs):
    """Return the program whose range contains a unit, for ranges of equal length."""
    short = units // programs
    longer = units % programs
    beyond = unit - longer * (short + 1)
    return tl.where(beyond < 0, unit // (short + 1), longer + beyond // tl.maximum(short, 1))


@triton.jit
def locate(
    unit, ends_ptr, lens_ptr, num_seqs,
    UNIT: tl.constexpr, GROW_SPLITS: tl.constexpr, BLOCK_B: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Return a unit's sequence and the number of units before that sequence; the sequence's context length, units and
    units per split."""
    seqs = tl.arange(0, BLOCK_B)
    ends = tl.load(ends_ptr + seqs, mask=seqs < num_seqs, other=2147483647)
    seq = tl.sum((ends <= unit).to(tl.int32), 0)
    before = tl.max(tl.where(ends <= unit, ends, 0), 0)
    context = tl.load(lens_ptr + seq)
    units = row_units(context, UNIT, WINDOW)
    return seq, before, context, units, units_per_split(units, GROW_SPLITS)


def partition_decode(
    context_lens: torch.Tensor, kv_heads: int, group: int, head_dim: int, dtype: torch.dtype, *,
    split_size: int | None = None, skip_empty: bool = False, window: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Return the partition of the rows' work, int32 as laid out in the module docstring, for all calls of paged_decode
    with these arguments. With `skip_empty`, rows of an empty context, which come last, take part in nothing. A `window`
    bounds a row's units to those that its token sees, see Variant."""
    batch, device = context_lens.shape[0], context_lens.device
    programs = _resident_programs(device, decode_tile(head_dim, dtype, device, window).programs_per_sm)
    partition = torch.empty(programs + 2 + batch, dtype=torch.int32, device=device)
    _partition_kernel[(1,)](
        context_lens, partition, batch, programs, kv_heads, UNIT=split_size or default_split_size(group),
        GROW_SPLITS=split_size is None, BLOCK_B=block_b(batch), BLOCK_P=triton.next_power_of_2(programs + 1),
        SKIP_EMPTY=skip_empty, WINDOW=window, num_warps=8, **pdl_options(device),
    )  # fmt: skip
    return partition


def block_b(batch: int) -> int:
    """Return the block size over rows: a power of two that covers the batch."""
    return max(256, triton.next_power_of_2(batch))


def _resident_programs(device: torch.device, programs_per_sm: int) -> int:
    if device.type != "cuda":
        return PROGRAMS_WITHOUT_GPU
    return torch.cuda.get_device_properties(device).multi_processor_count * programs_per_sm
