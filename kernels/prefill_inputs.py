"""Inputs of a step with prefill chunks, built on the device from a step descriptor (see kernels.decode_inputs).

The step holds C ragged sequences of new tokens, one after the other; each has a slot, new tokens and a context length
that includes them. Layout, int32, with T tokens, C sequences and W page table writes; cu_q rises from 0 and stays at
the token count for sequences that are absent:

    0 tokens | 1 writes | .. 8 | cu_q [C + 1] | slots [C] | contexts [C] | sample rows [C] | sample positions [C]
    | ids [T], -1 for the slot's newest token | writes [W, 3]: (slot, index, page)

A sequence that does not sample has sample position 0.
"""

import torch
import triton
import triton.language as tl

from kernels.decode_inputs import HEADER, PAGE_BLOCK, WRITE_BLOCK

TOKEN_BLOCK = 64


def prefill_descriptor_width(max_tokens: int, max_seqs: int, max_writes: int) -> int:
    """Return the int32 elements of a descriptor, padded so that each one starts on a cache line of its own."""
    return -(-(HEADER + 5 * max_seqs + 1 + max_tokens + 3 * max_writes) // 64) * 64


@triton.jit(do_not_specialize=["ring", "width"])
def _unpack_prefill_descriptor_kernel(
    ring_ptr, sequence_ptr, cu_q_ptr, slots_ptr, contexts_ptr, rows_ptr, positions_ptr, table_ptr, stride_table, ring,
    width, max_tokens, SEQS: tl.constexpr, BLOCK: tl.constexpr, HEADER: tl.constexpr, WRITE_BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.load(sequence_ptr) + 1
    tl.store(sequence_ptr, sequence)
    descriptor = ring_ptr + (sequence % ring) * width
    num_writes = tl.load(descriptor + 1)
    index = tl.arange(0, BLOCK)
    keep = index < SEQS
    fields = descriptor + HEADER
    cu_q = tl.load(fields + index, mask=index <= SEQS, other=0)
    slots = tl.load(fields + SEQS + 1 + index, mask=keep, other=0)
    contexts = tl.load(fields + 2 * SEQS + 1 + index, mask=keep, other=0)
    rows = tl.load(fields + 3 * SEQS + 1 + index, mask=keep, other=0)
    positions = tl.load(fields + 4 * SEQS + 1 + index, mask=keep, other=0)
    tl.store(cu_q_ptr + index, cu_q, mask=index <= SEQS)
    tl.store(slots_ptr + index, slots, mask=keep)
    tl.store(contexts_ptr + index, contexts, mask=keep)
    tl.store(rows_ptr + index, rows.to(tl.int64), mask=keep)
    tl.store(positions_ptr + index, positions, mask=keep)
    writes = fields + 5 * SEQS + 1 + max_tokens
    for start in range(0, num_writes, WRITE_BLOCK):
        at = start + tl.arange(0, WRITE_BLOCK)
        mask = at < num_writes
        slot = tl.load(writes + 3 * at, mask=mask, other=0)
        column = tl.load(writes + 3 * at + 1, mask=mask, other=0)
        page = tl.load(writes + 3 * at + 2, mask=mask, other=0)
        tl.store(table_ptr + slot.to(tl.int64) * stride_table + column, page, mask=mask)


@triton.jit(do_not_specialize=["ring", "width", "tokens"])
def _prefill_tokens_kernel(
    ring_ptr, sequence_ptr, cu_q_ptr, slots_ptr, contexts_ptr, table_ptr, last_token_ptr, ids_ptr, positions_ptr,
    mapping_ptr, stride_table, ring, width, tokens,
    SEQS: tl.constexpr, BLOCK_SEQS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, HEADER: tl.constexpr,
):  # fmt: skip
    descriptor = ring_ptr + (tl.load(sequence_ptr) % ring) * width
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    ids = tl.load(descriptor + HEADER + 5 * SEQS + 1 + token, mask=mask, other=0)
    index = tl.arange(0, BLOCK_SEQS)
    ends = tl.load(cu_q_ptr + 1 + index, mask=index < SEQS, other=2147483647)
    seq = tl.sum((ends[None, :] <= token[:, None]).to(tl.int32), 1)
    # Tokens beyond the last sequence are padding.
    real = mask & (seq < SEQS)
    end = tl.load(cu_q_ptr + 1 + seq, mask=real, other=0)
    slot = tl.load(slots_ptr + seq, mask=real, other=0).to(tl.int64)
    position = tl.load(contexts_ptr + seq, mask=real, other=0) - (end - token)
    position = tl.where(real, position, 0)
    newest = tl.load(last_token_ptr + slot, mask=real & (ids < 0), other=0)
    page = tl.load(table_ptr + slot * stride_table + position // PAGE, mask=real, other=0).to(tl.int64)
    tl.store(ids_ptr + token, tl.where(real, tl.where(ids < 0, newest, ids.to(tl.int64)), 0), mask=mask)
    tl.store(positions_ptr + token, position.to(tl.int64), mask=mask)
    tl.store(mapping_ptr + token, tl.where(real, page * PAGE + position % PAGE, -1), mask=mask)


@triton.jit
def _page_rows_kernel(
    slots_ptr, contexts_ptr, table_ptr, batch_page_table_ptr, stride_table, stride_batch_table,
    PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    seq = tl.program_id(0)
    source = table_ptr + tl.load(slots_ptr + seq).to(tl.int64) * stride_table
    target = batch_page_table_ptr + seq.to(tl.int64) * stride_batch_table
    pages = (tl.load(contexts_ptr + seq) + PAGE - 1) // PAGE
    for start in range(0, pages, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < pages, other=0), mask=at < pages)


def unpack_prefill_descriptor(
    ring: torch.Tensor, sequence: torch.Tensor, cu_q: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor,
    sample_rows: torch.Tensor, sample_positions: torch.Tensor, page_table: torch.Tensor, *, max_tokens: int,
) -> None:  # fmt: skip
    """Unpack the next descriptor: fill cu_q [C + 1], slots, contexts, sample_positions [C] int32 and sample_rows [C]
    int64, and apply its page table writes.

    ring [descriptors, width] int32, readable by the device; sequence [1] int32, incremented; page_table
    [slots + 1, pages] int32, mutated; `max_tokens` is the T of the descriptor's layout.
    """
    seqs = slots.shape[0]
    _unpack_prefill_descriptor_kernel[(1,)](
        ring, sequence, cu_q, slots, contexts, sample_rows, sample_positions, page_table, page_table.stride(0),
        ring.shape[0], ring.shape[1], max_tokens, SEQS=seqs, BLOCK=triton.next_power_of_2(seqs + 1), HEADER=HEADER,
        WRITE_BLOCK=WRITE_BLOCK, num_warps=4,
    )  # fmt: skip


def prefill_inputs(
    ring: torch.Tensor, sequence: torch.Tensor, cu_q: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor,
    page_table: torch.Tensor, last_token: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor,
    slot_mapping: torch.Tensor, batch_page_table: torch.Tensor, page_size: int,
) -> None:  # fmt: skip
    """Fill ids, positions, slot_mapping [T] int64 and the used part of batch_page_table [C, pages] int32 from the
    descriptor unpacked last.

    Tokens beyond the last sequence become padding: id 0, position 0, slot_mapping -1.
    """
    seqs, tokens = slots.shape[0], ids.shape[0]
    _prefill_tokens_kernel[(triton.cdiv(tokens, TOKEN_BLOCK),)](
        ring, sequence, cu_q, slots, contexts, page_table, last_token, ids, positions, slot_mapping,
        page_table.stride(0), ring.shape[0], ring.shape[1], tokens, SEQS=seqs,
        BLOCK_SEQS=triton.next_power_of_2(seqs), PAGE=page_size, BLOCK=TOKEN_BLOCK, HEADER=HEADER, num_warps=2,
    )  # fmt: skip
    _page_rows_kernel[(seqs,)](
        slots, contexts, page_table, batch_page_table, page_table.stride(0), batch_page_table.stride(0), PAGE=page_size,
        BLOCK=PAGE_BLOCK, num_warps=2,
    )  # fmt: skip


def prefill_inputs_reference(
    descriptor: torch.Tensor, seqs: int, page_table: torch.Tensor, last_token: torch.Tensor, tokens: int, page_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, positions and slot_mapping [tokens] of a descriptor (one row of the ring), in plain torch."""
    cu_q = descriptor[HEADER : HEADER + seqs + 1].tolist()
    slots = descriptor[HEADER + seqs + 1 :][:seqs].tolist()
    contexts = descriptor[HEADER + 2 * seqs + 1 :][:seqs].tolist()
    given = descriptor[HEADER + 5 * seqs + 1 :]
    ids, positions = torch.zeros((2, tokens), dtype=torch.int64)
    mapping = torch.full((tokens,), -1)
    for seq, (slot, context) in enumerate(zip(slots, contexts, strict=True)):
        for token in range(cu_q[seq], cu_q[seq + 1]):
            position = context - (cu_q[seq + 1] - token)
            ids[token] = last_token[slot] if given[token] < 0 else given[token]
            positions[token] = position
            mapping[token] = int(page_table[slot, position // page_size]) * page_size + position % page_size
    return ids, positions, mapping
