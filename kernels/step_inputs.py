"""What a decode step runs on, made on the device: a letter from the host is opened, then the rows' inputs laid out.

A letter is one row of a ring in memory the host writes and the device reads (pinned on CUDA), so that a step needs no
copy and no launch of its own, and both kernels can live in a CUDA graph. A counter on the device says whose turn it is:
the host numbers its letters from 1 and puts letter n into row n % ring. int32, with M rows and W page table writes:

    0 rows | 1 writes | .. 8 | slots [M] | contexts [M] | writes [W, 3]: (slot, index, page)

A context counts the token at hand. Rows beyond the letter's own become dummy rows: no context, no place in the cache.
"""

import torch
import triton
import triton.language as tl

from kernels.overlap import early, take_turn

HEADER = 8
WRITE_BLOCK = 128
PAGE_BLOCK = 256


def letter_width(max_rows: int, max_writes: int) -> int:
    """int32 elements of a letter, padded so that each begins on a line of its own."""
    return -(-(HEADER + 2 * max_rows + 3 * max_writes) // 64) * 64


@triton.jit(do_not_specialize=["rows", "dummy_slot", "ring", "max_rows", "width"])
def _open_letter_kernel(
    ring_ptr, turn_ptr, slots_ptr, contexts_ptr, table_ptr, stride_table, rows, dummy_slot, ring, max_rows, width,
    HEADER: tl.constexpr, BLOCK: tl.constexpr, WRITE_BLOCK: tl.constexpr,
):  # fmt: skip
    turn = tl.load(turn_ptr) + 1
    tl.store(turn_ptr, turn)
    letter = ring_ptr + (turn % ring) * width
    # Nothing here waits for the header: reading host memory costs microseconds, once.
    count = tl.load(letter)
    num_writes = tl.load(letter + 1)
    index = tl.arange(0, BLOCK)
    slots = tl.load(letter + HEADER + index, mask=index < rows, other=0)
    contexts = tl.load(letter + HEADER + max_rows + index, mask=index < rows, other=0)
    is_real = index < count
    tl.store(slots_ptr + index, tl.where(is_real, slots, dummy_slot), mask=index < rows)
    tl.store(contexts_ptr + index, tl.where(is_real, contexts, 0), mask=index < rows)
    writes = letter + HEADER + 2 * max_rows
    for start in range(0, num_writes, WRITE_BLOCK):
        at = start + tl.arange(0, WRITE_BLOCK)
        keep = at < num_writes
        slot = tl.load(writes + 3 * at, mask=keep, other=0)
        place = tl.load(writes + 3 * at + 1, mask=keep, other=0)
        page = tl.load(writes + 3 * at + 2, mask=keep, other=0)
        tl.store(table_ptr + slot.to(tl.int64) * stride_table + place, page, mask=keep)


def open_letter(
    ring: torch.Tensor, turn: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor,
    *, rows: int, max_rows: int, dummy_slot: int,
) -> None:  # fmt: skip
    """Take the next letter: fill slots and contexts [>= rows] int32 of the step, and apply its page table writes.

    ring [letters, width] int32, readable by the device; turn [1] int32 on the device, the number of the letter taken
    last, raised by one. page_table [slots + 1, pages] int32, mutated. `max_rows` is the M of the letter's layout.
    """
    _open_letter_kernel[(1,)](
        ring, turn, slots, contexts, page_table, page_table.stride(0), rows, dummy_slot, ring.shape[0], max_rows,
        ring.shape[1], HEADER=HEADER, BLOCK=triton.next_power_of_2(max_rows), WRITE_BLOCK=WRITE_BLOCK, num_warps=4,
    )  # fmt: skip


def open_letter_reference(
    ring: torch.Tensor, turn: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor,
    *, rows: int, max_rows: int, dummy_slot: int,
) -> None:  # fmt: skip
    """open_letter in plain torch."""
    turn += 1
    letter = ring[int(turn) % ring.shape[0]]
    count, num_writes = letter[:2].tolist()
    slots[:rows] = dummy_slot
    contexts[:rows] = 0
    slots[:count] = letter[HEADER : HEADER + count]
    contexts[:count] = letter[HEADER + max_rows : HEADER + max_rows + count]
    writes = letter[HEADER + 2 * max_rows :][: 3 * num_writes].view(-1, 3).long()
    page_table[writes[:, 0], writes[:, 1]] = writes[:, 2].int()


@triton.jit
def _decode_inputs_kernel(
    slots_ptr, contexts_ptr, table_ptr, last_token_ptr, ids_ptr, positions_ptr, mapping_ptr, rows_table_ptr,
    stride_table, stride_rows_table, PAGE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    take_turn(OVERLAP)
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    context = tl.load(contexts_ptr + row)
    position = tl.maximum(context - 1, 0)
    source = table_ptr + slot * stride_table
    page = tl.load(source + position // PAGE).to(tl.int64)
    tl.store(ids_ptr + row, tl.load(last_token_ptr + slot))
    tl.store(positions_ptr + row, position.to(tl.int64))
    tl.store(mapping_ptr + row, tl.where(context > 0, page * PAGE + position % PAGE, -1))
    target = rows_table_ptr + row.to(tl.int64) * stride_rows_table
    pages = (context + PAGE - 1) // PAGE
    for start in range(0, pages, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < pages, other=0), mask=at < pages)


def decode_inputs(
    slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor, last_token: torch.Tensor,
    ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor, rows_table: torch.Tensor, page_size: int,
) -> None:  # fmt: skip
    """Fill ids, positions and slot_mapping [B] int64, and the used part of rows_table [B, pages] int32.

    slots and contexts [B] int32, page_table [slots + 1, pages] int32, last_token [slots + 1] int64. A row of no
    context gets slot_mapping -1.
    """
    _decode_inputs_kernel[(slots.shape[0],)](
        slots, contexts, page_table, last_token, ids, positions, slot_mapping, rows_table,
        page_table.stride(0), rows_table.stride(0), PAGE=page_size, BLOCK=PAGE_BLOCK, num_warps=2,
        **early(ids.device),
    )  # fmt: skip


def decode_inputs_reference(
    slots: torch.Tensor, contexts: torch.Tensor, page_table: torch.Tensor, last_token: torch.Tensor,
    ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor, rows_table: torch.Tensor, page_size: int,
) -> None:  # fmt: skip
    """decode_inputs in plain torch."""
    rows, at = slots.long(), (contexts.long() - 1).clamp(min=0)
    ids.copy_(last_token[rows])
    positions.copy_(at)
    places = page_table[rows, at // page_size].long() * page_size + at % page_size
    slot_mapping.copy_(torch.where(contexts > 0, places, -1))
    for row, context in enumerate(contexts.tolist()):
        pages = -(-context // page_size)
        rows_table[row, :pages] = page_table[rows[row], :pages]
