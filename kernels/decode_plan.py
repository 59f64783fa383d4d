"""How decode attention is dealt out: equal shares of all rows' work, planned once a step for all layers.

A row's context is a number of units of tokens. Its splits are one or more whole units long, by the row's own length:
they define the result's bits, the plan only says who computes them. The units of all (sequence, kv head) pairs form one
list, sequence by sequence and in it head by head; each program takes an equal run of it, or rather the splits that
begin in its run. Where there are more splits than programs, only so many programs take part as get equally many; the
runs of the others are empty. Where rows are so alike that runs of whole pairs take no longer, whole pairs are dealt
out: then nobody has to fold what several programs computed.

    plan [1 + programs + 1 + B] int32: how many programs take part, 0 where whole pairs are dealt out | where each run
    begins, and the last ends | where each row's units end, all heads counted
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.overlap import early, take_turn
from kernels.paged_tile import tile_key

MIN_SPLIT_TOKENS = 128
# Chosen to fill the interpreter's time budget: several splits per program, and runs that end inside a sequence.
PROGRAMS_WITHOUT_GPU = 8


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


# By tile_key.
TILES = {
    (64, 2): DecodeTile(64, 4, 4, 3),
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
    return TILES[tile_key(head_dim, dtype)]


def default_split_size(group: int) -> int:
    """Tokens of a unit for `group` query heads per kv head. A partial is as big as `group` tokens."""
    return max(MIN_SPLIT_TOKENS, 32 * triton.next_power_of_2(group))


@triton.jit
def units_per_split(units, GROWS: tl.constexpr):
    """Units in a split of rows of so many units: 1, then 2 and 4 for long rows, so that nobody folds too many."""
    if GROWS:
        return tl.where(units <= 8, 1, tl.where(units <= 64, 2, 4))
    return tl.zeros_like(units) + 1


@triton.jit
def _run_start(program, units, programs):
    """The first unit of a program's run: the first units % programs runs are one unit longer than the others."""
    return program * (units // programs) + tl.minimum(program, units % programs)


@triton.jit(do_not_specialize=["num_seqs", "programs"])
def _plan_kernel(
    lens_ptr, plan_ptr, num_seqs, programs, kv_heads,
    UNIT: tl.constexpr, GROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    take_turn(OVERLAP)
    seqs = tl.arange(0, BLOCK_B)
    is_row = seqs < num_seqs
    lens = tl.load(lens_ptr + seqs, mask=is_row, other=0)
    # An empty row counts one unit, whose tile loop runs zero times and which stores zeros.
    units = tl.where(is_row, tl.maximum((lens + UNIT - 1) // UNIT, 1), 0)
    ends_ptr = plan_ptr + programs + 2
    tl.store(ends_ptr + seqs, tl.cumsum(units, 0) * kv_heads, mask=is_row)
    total = tl.sum(units, 0) * kv_heads
    pairs = num_seqs * kv_heads
    longest = tl.max(units, 0)
    # Fewer pairs than programs still keep the memory busy, from about 4 on 3 multiprocessors on.
    are_alike = (pairs <= programs) & (pairs * 3 >= programs) & (longest * pairs * 8 <= total * 9)
    deals_pairs = are_alike | ((pairs + programs - 1) // programs * longest * programs * 16 <= total * 17)
    per_split = units_per_split(units, GROWS)
    splits = tl.sum((units + per_split - 1) // per_split, 0) * kv_heads
    share = (splits + programs - 1) // programs
    # Runs longer than one split that is not whole would give two to some programs where each could have one.
    can_leave_some_out = (share > 1) | (tl.max(per_split, 0) * splits == total)
    active = tl.where(can_leave_some_out, (splits + share - 1) // share, programs)
    program = tl.arange(0, BLOCK_P)
    bounds = tl.minimum(_run_start(program, total, active), total)
    tl.debug_barrier()
    if deals_pairs:
        pair = _run_start(program, pairs, programs)
        seq = pair // kv_heads
        before = tl.load(ends_ptr + seq - 1, mask=(seq > 0) & (pair < pairs), other=0)
        end = tl.load(ends_ptr + seq, mask=pair < pairs, other=0)
        bounds = tl.where(pair < pairs, before + pair % kv_heads * ((end - before) // kv_heads), total)
        active = 0
    tl.store(plan_ptr, active)
    tl.store(plan_ptr + 1 + program, bounds, mask=program <= programs)


@triton.jit
def owner(unit, units, programs):
    """The program in whose run a unit lies, where runs are even."""
    short = units // programs
    longer = units % programs
    beyond = unit - longer * (short + 1)
    return tl.where(beyond < 0, unit // (short + 1), longer + beyond // tl.maximum(short, 1))


@triton.jit
def locate(unit, ends_ptr, lens_ptr, num_seqs, UNIT: tl.constexpr, GROWS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Where a unit of the list lies: its sequence, and how many units are before that; the sequence's context, units
    and units a split."""
    seqs = tl.arange(0, BLOCK_B)
    ends = tl.load(ends_ptr + seqs, mask=seqs < num_seqs, other=2147483647)
    seq = tl.sum((ends <= unit).to(tl.int32), 0)
    before = tl.max(tl.where(ends <= unit, ends, 0), 0)
    context = tl.load(lens_ptr + seq)
    units = tl.maximum((context + UNIT - 1) // UNIT, 1)
    return seq, before, context, units, units_per_split(units, GROWS)


def plan_decode(
    context_lens: torch.Tensor, kv_heads: int, group: int, head_dim: int, dtype: torch.dtype, *,
    split_size: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return how the rows' work is dealt out, int32, for all calls of paged_decode with these arguments: how many
    programs take part, where each one's run begins and the last ends, and where each row's units end."""
    batch, device = context_lens.shape[0], context_lens.device
    programs = _resident_programs(device, decode_tile(head_dim, dtype, device).programs_per_sm)
    plan = torch.empty(programs + 2 + batch, dtype=torch.int32, device=device)
    _plan_kernel[(1,)](
        context_lens, plan, batch, programs, kv_heads, UNIT=split_size or default_split_size(group),
        GROWS=split_size is None, BLOCK_B=block_b(batch), BLOCK_P=triton.next_power_of_2(programs + 1), num_warps=8,
        **early(device),
    )  # fmt: skip
    return plan


def block_b(batch: int) -> int:
    """Rows that a program looks at together."""
    return max(256, triton.next_power_of_2(batch))


def _resident_programs(device: torch.device, programs_per_sm: int) -> int:
    if device.type != "cuda":
        return PROGRAMS_WITHOUT_GPU
    return torch.cuda.get_device_properties(device).multi_processor_count * programs_per_sm
