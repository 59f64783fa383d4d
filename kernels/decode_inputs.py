"""Inputs of a decode step, built on the device: one kernel unpacks the step descriptor, a second lays out the rows.

A step descriptor is one row of a ring in memory that the host writes and the device reads (pinned on CUDA). A step
therefore needs no copy and no launch of its own, and both kernels can be captured in a CUDA graph. The host numbers
its descriptors from 1 and writes descriptor n to row n % ring; a counter on the device holds the sequence number of
the last one unpacked. Layout, int32, with M rows and W page table writes:

    0 rows | 1 writes | .. 8 | slots [M] | contexts [M] | writes [W, 3]: (slot, index, page)

A context length includes the token being computed. Rows beyond the descriptor's own are padding: the dummy slot,
context length 0, slot mapping -1.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

HEADER = 8
WRITE_BLOCK = 128
PAGE_BLOCK = 256


def decode_descriptor_width(max_rows: int, max_writes: int) -> int:
    """Return the int32 elements of a descriptor, padded so that each one starts on a cache line of its own."""
    return -(-(HEADER + 2 * max_rows + 3 * max_writes) // 64) * 64


@triton.jit(do_not_specialize=["rows", "dummy_slot", "ring", "max_rows", "width"])
def _unpack_decode_descriptor_kernel(
    ring_ptr, sequence_ptr, slots_ptr, contexts_ptr, table_ptr, stride_table, rows, dummy_slot, ring, max_rows, width,
    HEADER: tl.constexpr, BLOCK: tl.constexpr, WRITE_BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.load(sequence_ptr) + 1
    tl.store(sequence_ptr, sequence)
    descriptor = ring_ptr + (sequence % ring) * width
    # All loads are independent of the header, so that the microseconds of a host memory read are paid once.
    count = tl.load(descriptor)
    num_writes = tl.load(descriptor + 1)
    index = tl.arange(0, BLOCK)
    slots = tl.load(descriptor + HEADER + index, mask=index < rows, other=0)
    contexts = tl.load(descriptor + HEADER + max_rows + index, mask=index < rows, other=0)
    is_real = index < count
    tl.store(slots_ptr + index, tl.where(is_real, slots, dummy_slot), mask=index < rows)
    tl.store(contexts_ptr + index, tl.where(is_real, contexts, 0), mask=index < rows)
    writes = descriptor + HEADER + 2 * max_rows
    for start in range(0, num_writes, WRITE_BLOCK):
        at = start + tl.arange(0, WRITE_BLOCK)
        keep = at < num_writes
        slot = tl.load(writes + 3 * at, mask=keep, other=0)
        column = tl.load(writes + 3 * at + 1, mask=keep, other=0)
        page = tl.load(writes + 3 * at + 2, mask=keep, other=0)
        tl.store(table_ptr + slot.to(tl.int64) * stride_table + column, page, mask=keep)


def unpack_decode_descriptor(
    ring: torch.Tensor, sequence: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor,
    *, rows: int, max_rows: int, dummy_slot: int,
) -> None:  # fmt: skip
    """Unpack the next descriptor: fill slots and contexts [>= rows] int32 of the step, apply its page table writes.

    ring [descriptors, width] int32, readable by the device; sequence [1] int32 on the device, the sequence number of
    the last descriptor unpacked, incremented. page_table [slots + 1, pages] int32, mutated. `max_rows` is the M of the
    descriptor's layout.
    """
    _unpack_decode_descriptor_kernel[(1,)](
        ring, sequence, slots, contexts, page_table, page_table.stride(0), rows, dummy_slot, ring.shape[0], max_rows,
        ring.shape[1], HEADER=HEADER, BLOCK=triton.next_power_of_2(max_rows), WRITE_BLOCK=WRITE_BLOCK, num_warps=4,
    )  # fmt: skip


def unpack_decode_descriptor_reference(
    ring: torch.Tensor, sequence: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor,
    *, rows: int, max_rows: int, dummy_slot: int,
) -> None:  # fmt: skip
    """unpack_decode_descriptor in plain torch."""
    sequence += 1
    descriptor = ring[int(sequence) % ring.shape[0]]
    count, num_writes = descriptor[:2].tolist()
    slots[:rows] = dummy_slot
    contexts[:rows] = 0
    slots[:count] = descriptor[HEADER : HEADER + count]
    contexts[:count] = descriptor[HEADER + max_rows : HEADER + max_rows + count]
    writes = descriptor[HEADER + 2 * max_rows :][: 3 * num_writes].view(-1, 3).long()
    page_table[writes[:, 0], writes[:, 1]] = writes[:, 2].int()


@triton.jit
def _decode_inputs_kernel(
    slots_ptr, contexts_ptr, table_ptr, last_token_ptr, ids_ptr, positions_ptr, mapping_ptr, batch_page_table_ptr,
    stride_table, stride_batch_table, PAGE: tl.constexpr, BLOCK: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL)
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    context = tl.load(contexts_ptr + row)
    position = tl.maximum(context - 1, 0)
    source = table_ptr + slot * stride_table
    page = tl.load(source + position // PAGE).to(tl.int64)
    tl.store(ids_ptr + row, tl.load(last_token_ptr + slot))
    tl.store(positions_ptr + row, position.to(tl.int64))
    tl.store(mapping_ptr + row, tl.where(context > 0, page * PAGE + position % PAGE, -1))
    target = batch_page_table_ptr + row.to(tl.int64) * stride_batch_table
    pages = (context + PAGE - 1) // PAGE
    for start in range(0, pages, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < pages, other=0), mask=at < pages)


def decode_inputs(
    slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor, last_token: torch.Tensor,
    ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor, batch_page_table: torch.Tensor,
    page_size: int,
) -> None:  # fmt: skip
    """Fill ids, positions and slot_mapping [B] int64, and the used part of batch_page_table [B, pages] int32.

    slots and contexts [B] int32, page_table [slots + 1, pages] int32, last_token [slots + 1] int64. A row with context
    length 0 gets slot_mapping -1.
    """
    _decode_inputs_kernel[(slots.shape[0],)](
        slots, contexts, page_table, last_token, ids, positions, slot_mapping, batch_page_table,
        page_table.stride(0), batch_page_table.stride(0), PAGE=page_size, BLOCK=PAGE_BLOCK, num_warps=2,
        **pdl_options(ids.device),
    )  # fmt: skip


def decode_inputs_reference(
    slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor, last_token: torch.Tensor,
    ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor, batch_page_table: torch.Tensor,
    page_size: int,
) -> None:  # fmt: skip
    """decode_inputs in plain torch."""
    rows, at = slots.long(), (contexts.long() - 1).clamp(min=0)
    ids.copy_(last_token[rows])
    positions.copy_(at)
    places = page_table[rows, at // page_size].long() * page_size + at % page_size
    slot_mapping.copy_(torch.where(contexts > 0, places, -1))
    for row, context in enumerate(contexts.tolist()):
        pages = -(-context // page_size)
        batch_page_table[row, :pages] = page_table[rows[row], :pages]
