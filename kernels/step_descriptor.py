"""The step descriptor: what a step computes, as the host writes it and the device reads it; here alone is its layout.

A descriptor is one row of a ring in memory that the host writes and the device reads (pinned on CUDA). A step therefore
needs no copy and no launch of its own, and the kernels that read it can be captured in a CUDA graph. The host numbers
its descriptors from 1 and writes descriptor n to row n % ring; a counter on the device holds the sequence number of the
last one unpacked.

A step has C prompt chunks, of T tokens together, and M decode rows of one token; each is a sequence with a slot and a
context length that includes its new tokens. int32, with S = C + M sequences, the chunks first, and W page table writes:

    rows | writes | groups | .. 8 | slots [S] | contexts [S] | given [S] | ends [S] | sample rows [S]
    | sample positions [S]
    | ids [T] | writes [W, 3]: (slot, index, page)

`ends` are the ends of the chunks among their tokens; those of chunks that are absent are the token count. Sample rows
are tokens, sample positions the indices of the sampled tokens in their sequences, 0 where a chunk does not sample. The
last three of the sections are written for chunks only. `given`, for decode rows, is the id of the row's token, or -1
for the one that its slot has sampled last.

A layout without chunks has other sections in place of those three, for decode rows that share prefixes; each is [S]:

    prefixes | members | group ends | group prefixes | group slots

`prefixes` are the tokens that a row shares with the rows of its group, 0 without a group; `members` the rows, group by
group; by group, its end among them, its tokens and a slot whose pages have them. Read by steps with groups alone.
"""

from typing import Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl

from kernels.prefix_decode import SharedPrefixes

HEADER = tl.constexpr(8)
ROWS, WRITES, GROUPS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SLOTS, CONTEXTS, GIVEN, ENDS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
SAMPLE_ROWS, SAMPLE_POSITIONS = tl.constexpr(4), tl.constexpr(5)
PREFIXES, MEMBERS, GROUP_ENDS = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
GROUP_PREFIXES, GROUP_SLOTS = tl.constexpr(6), tl.constexpr(7)
SECTIONS, SECTIONS_WITHOUT_CHUNKS = 6, 8
WRITE_BLOCK = 128

Array = TypeVar("Array", torch.Tensor, Any)


class StepLayout(NamedTuple):
    """Room of a descriptor: decode rows, page table writes, prompt chunks and their tokens."""

    rows: int
    writes: int
    chunks: int = 0
    tokens: int = 0

    @property
    def seqs(self) -> int:
        """Chunks and rows."""
        return self.chunks + self.rows

    @property
    def ids_at(self) -> int:
        """Where the ids of the chunks' tokens begin."""
        return HEADER.value + (SECTIONS if self.chunks else SECTIONS_WITHOUT_CHUNKS) * self.seqs

    @property
    def writes_at(self) -> int:
        """Where the page table writes begin."""
        return self.ids_at + self.tokens

    @property
    def width(self) -> int:
        """The int32 elements of a descriptor, padded so that each one starts on a cache line of its own."""
        return -(-(self.writes_at + 3 * self.writes) // 64) * 64

    def section(self, descriptor: Array, index: tl.constexpr) -> Array:
        """Return a view of a section [S] of a descriptor, which is a tensor or a numpy array."""
        begin = HEADER.value + index.value * self.seqs
        section: Array = descriptor[begin : begin + self.seqs]
        return section

    def set_counts(self, descriptor: Any, rows: int, writes: int, groups: int = 0) -> None:
        """Write the header."""
        descriptor[ROWS.value], descriptor[WRITES.value], descriptor[GROUPS.value] = rows, writes, groups

    def set_rows(self, descriptor: Any, slots: Any, contexts: Any, given: Any | None) -> None:
        """Write the decode rows; `given` None stands for -1 in each."""
        end = self.chunks + len(slots)
        for index, values in ((SLOTS, slots), (CONTEXTS, contexts), (GIVEN, -1 if given is None else given)):
            self.section(descriptor, index)[self.chunks : end] = values


@triton.jit
def section(descriptor, seqs, INDEX: tl.constexpr):
    """Return the pointer to a section, see StepLayout.section."""
    return descriptor + HEADER + INDEX * seqs


@triton.jit
def _unpack_groups(
    descriptor, prefixes_ptr, members_ptr, ends_ptr, lengths_ptr, group_slots_ptr, row, rows, is_real, seqs,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    group = tl.arange(0, BLOCK_G)
    # A layout has at least as many rows as a step has groups, and what lies beyond a section is another section.
    is_group = group < tl.load(descriptor + GROUPS)
    prefixes = tl.load(section(descriptor, seqs, PREFIXES) + row, mask=row < rows, other=0)
    members = tl.load(section(descriptor, seqs, MEMBERS) + row, mask=row < rows, other=0)
    ends = tl.load(section(descriptor, seqs, GROUP_ENDS) + group)
    lengths = tl.load(section(descriptor, seqs, GROUP_PREFIXES) + group)
    slots = tl.load(section(descriptor, seqs, GROUP_SLOTS) + group)
    last = tl.max(tl.where(is_group, ends, 0), 0)
    tl.store(prefixes_ptr + row, tl.where(is_real, prefixes, 0), mask=row < rows)
    tl.store(members_ptr + row, tl.where(row < last, members, 0), mask=row < rows)
    tl.store(ends_ptr, 0)
    tl.store(ends_ptr + 1 + group, tl.where(is_group, ends, last))
    tl.store(lengths_ptr + group, tl.where(is_group, lengths, 0))
    tl.store(group_slots_ptr + group, tl.where(is_group, slots, 0))


@triton.jit(do_not_specialize=["rows", "dummy_slot", "ring", "seqs", "writes_at", "width"])
def _unpack_kernel(
    ring_ptr, sequence_ptr, slots_ptr, contexts_ptr, given_ptr, cu_q_ptr, sample_rows_ptr, sample_positions_ptr,
    table_ptr, prefixes_ptr, members_ptr, ends_ptr, lengths_ptr, group_slots_ptr,
    stride_table, rows, dummy_slot, ring, seqs, writes_at, width,
    CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr, WRITE_BLOCK: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    sequence = tl.load(sequence_ptr) + 1
    tl.store(sequence_ptr, sequence)
    descriptor = ring_ptr + (sequence % ring) * width
    # All loads are independent of the header, so that the microseconds of a host memory read are paid once.
    count = tl.load(descriptor + ROWS)
    num_writes = tl.load(descriptor + WRITES)
    row = tl.arange(0, BLOCK)
    at = CHUNKS + row
    slots = tl.load(section(descriptor, seqs, SLOTS) + at, mask=row < rows, other=0)
    contexts = tl.load(section(descriptor, seqs, CONTEXTS) + at, mask=row < rows, other=0)
    given = tl.load(section(descriptor, seqs, GIVEN) + at, mask=row < rows, other=-1)
    is_real = row < count
    contexts = tl.where(is_real, contexts, 0)
    if BLOCK_G > 0:
        _unpack_groups(
            descriptor, prefixes_ptr, members_ptr, ends_ptr, lengths_ptr, group_slots_ptr, row, rows, is_real, seqs,
            BLOCK_G,
        )  # fmt: skip
    if CHUNKS > 0:
        chunk = tl.arange(0, BLOCK_C)
        keep = chunk < CHUNKS
        chunk_slots = tl.load(section(descriptor, seqs, SLOTS) + chunk, mask=keep, other=0)
        chunk_contexts = tl.load(section(descriptor, seqs, CONTEXTS) + chunk, mask=keep, other=0)
        ends = tl.load(section(descriptor, seqs, ENDS) + chunk, mask=keep, other=0)
        sample_rows = tl.load(section(descriptor, seqs, SAMPLE_ROWS) + chunk, mask=keep, other=0)
        positions = tl.load(section(descriptor, seqs, SAMPLE_POSITIONS) + chunk, mask=keep, other=0)
        tl.store(slots_ptr + chunk, chunk_slots, mask=keep)
        tl.store(contexts_ptr + chunk, chunk_contexts, mask=keep)
        tl.store(cu_q_ptr, 0)
        tl.store(cu_q_ptr + 1 + chunk, ends, mask=keep)
        tl.store(sample_rows_ptr + chunk, sample_rows.to(tl.int64), mask=keep)
        tl.store(sample_positions_ptr + chunk, positions, mask=keep)
        first = tl.max(ends, 0)
        tl.store(sample_rows_ptr + at, tl.where(is_real, first + row, 0).to(tl.int64), mask=row < rows)
        tl.store(sample_positions_ptr + at, contexts, mask=row < rows)
    tl.store(slots_ptr + at, tl.where(is_real, slots, dummy_slot), mask=row < rows)
    tl.store(contexts_ptr + at, contexts, mask=row < rows)
    tl.store(given_ptr + at, tl.where(is_real, given, -1), mask=row < rows)
    writes = descriptor + writes_at
    for start in range(0, num_writes, WRITE_BLOCK):
        write = start + tl.arange(0, WRITE_BLOCK)
        mask = write < num_writes
        slot = tl.load(writes + 3 * write, mask=mask, other=0)
        column = tl.load(writes + 3 * write + 1, mask=mask, other=0)
        page = tl.load(writes + 3 * write + 2, mask=mask, other=0)
        tl.store(table_ptr + slot.to(tl.int64) * stride_table + column, page, mask=mask)


class ChunkOutputs(NamedTuple):
    """What unpacking a layout with chunks fills besides: cu_q [C + 1] int32; by sequence, sample_rows int64 and
    sample_positions int32. A row that is absent has position 0."""

    cu_q: torch.Tensor
    sample_rows: torch.Tensor
    sample_positions: torch.Tensor


def unpack_step_descriptor(
    layout: StepLayout, ring: torch.Tensor, sequence: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor,
    given: torch.Tensor, page_table: torch.Tensor, *, dummy_slot: int, chunks: ChunkOutputs | None = None,
    prefixes: SharedPrefixes | None = None,
) -> None:  # fmt: skip
    """Unpack the next descriptor: fill slots, contexts and given [C + rows] int32 and `chunks` of the same length, and
    apply the page table writes. A decode row that is absent gets the dummy slot, context length 0 and no given id. Fill
    `prefixes` of the rows, where it is given; its groups are a power of two, at most the layout's rows.

    ring [descriptors, layout.width] int32, readable by the device; sequence [1] int32 on the device, the sequence
    number of the last descriptor unpacked, incremented. page_table [slots + 1, pages] int32, mutated.
    """
    rows = slots.shape[0] - layout.chunks
    cu_q, sample_rows, positions = chunks or (contexts, contexts, contexts)
    none = (contexts,) * 5
    groups = (
        none
        if prefixes is None
        else (prefixes.tokens, prefixes.members, prefixes.ends, prefixes.lengths, prefixes.slots)
    )
    _unpack_kernel[(1,)](
        ring, sequence, slots, contexts, given, cu_q, sample_rows, positions, page_table, *groups,
        page_table.stride(0), rows,
        dummy_slot, ring.shape[0], layout.seqs, layout.writes_at, layout.width, CHUNKS=layout.chunks,
        BLOCK_C=triton.next_power_of_2(max(1, layout.chunks)), BLOCK=triton.next_power_of_2(max(1, layout.rows)),
        WRITE_BLOCK=WRITE_BLOCK, BLOCK_G=0 if prefixes is None else prefixes.lengths.shape[0], num_warps=4,
    )  # fmt: skip


def unpack_step_descriptor_reference(
    layout: StepLayout, ring: torch.Tensor, sequence: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor,
    given: torch.Tensor, page_table: torch.Tensor, *, dummy_slot: int, chunks: ChunkOutputs | None = None,
    prefixes: SharedPrefixes | None = None,
) -> None:  # fmt: skip
    """unpack_step_descriptor in plain torch."""
    sequence += 1
    descriptor = ring[int(sequence) % ring.shape[0]]
    rows, num_writes = int(descriptor[ROWS.value]), int(descriptor[WRITES.value])
    used = layout.chunks + rows
    slots[layout.chunks :] = dummy_slot
    contexts[layout.chunks :] = 0
    slots[:used] = layout.section(descriptor, SLOTS)[:used]
    contexts[:used] = layout.section(descriptor, CONTEXTS)[:used]
    given[layout.chunks :] = -1
    given[layout.chunks : used] = layout.section(descriptor, GIVEN)[layout.chunks : used]
    if chunks is not None:
        count = layout.chunks
        chunks.cu_q[0] = 0
        chunks.cu_q[1:] = layout.section(descriptor, ENDS)[:count]
        chunks.sample_rows.zero_()
        chunks.sample_positions.copy_(contexts)
        chunks.sample_rows[:count] = layout.section(descriptor, SAMPLE_ROWS)[:count]
        chunks.sample_positions[:count] = layout.section(descriptor, SAMPLE_POSITIONS)[:count]
        chunks.sample_rows[count:used] = int(chunks.cu_q[count]) + torch.arange(rows, device=ring.device)
    if prefixes is not None:
        count = int(descriptor[GROUPS.value])
        for filled in prefixes:
            filled.zero_()
        prefixes.tokens[:rows] = layout.section(descriptor, PREFIXES)[:rows]
        prefixes.ends[1 : count + 1] = layout.section(descriptor, GROUP_ENDS)[:count]
        last = int(prefixes.ends.max())
        prefixes.ends[count + 1 :] = last
        prefixes.lengths[:count] = layout.section(descriptor, GROUP_PREFIXES)[:count]
        prefixes.slots[:count] = layout.section(descriptor, GROUP_SLOTS)[:count]
        prefixes.members[:last] = layout.section(descriptor, MEMBERS)[:last]
    writes = descriptor[layout.writes_at :][: 3 * num_writes].view(-1, 3).long()
    page_table[writes[:, 0], writes[:, 1]] = writes[:, 2].int()
