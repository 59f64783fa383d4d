"""Inputs of a step with prompt chunks, built on the device from a step descriptor (kernels.step_descriptor) that has
been unpacked: the tokens of C chunks one after another, then one token of each decode row, then padding.
"""

import torch
import triton
import triton.language as tl

from kernels.decode_inputs import PAGE_BLOCK
from kernels.step_descriptor import CONTEXTS, ENDS, GIVEN, ROWS, SLOTS, StepLayout

TOKEN_BLOCK = 64


@triton.jit(do_not_specialize=["ring", "width", "ids_at", "tokens"])
def _prefill_tokens_kernel(
    ring_ptr, sequence_ptr, cu_q_ptr, slots_ptr, contexts_ptr, given_ptr, table_ptr, last_token_ptr, ids_ptr,
    positions_ptr, mapping_ptr, stride_table, ring, width, ids_at, tokens,
    CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    descriptor = ring_ptr + (tl.load(sequence_ptr) % ring) * width
    rows = tl.load(descriptor + ROWS)
    chunk_tokens = tl.load(cu_q_ptr + CHUNKS)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = token < tokens
    in_chunk = mask & (token < chunk_tokens)
    # Tokens beyond the last row are padding.
    real = mask & (token < chunk_tokens + rows)
    ids = tl.load(descriptor + ids_at + token, mask=in_chunk, other=0)
    index = tl.arange(0, BLOCK_C)
    ends = tl.load(cu_q_ptr + 1 + index, mask=index < CHUNKS, other=2147483647)
    chunk = tl.sum((ends[None, :] <= token[:, None]).to(tl.int32), 1)
    seq = tl.where(in_chunk, chunk, CHUNKS + token - chunk_tokens)
    left = tl.where(in_chunk, tl.load(cu_q_ptr + 1 + chunk, mask=in_chunk, other=0) - token, 1)
    slot = tl.load(slots_ptr + seq, mask=real, other=0).to(tl.int64)
    position = tl.where(real, tl.load(contexts_ptr + seq, mask=real, other=0) - left, 0)
    newest = tl.load(last_token_ptr + slot, mask=real, other=0)
    given = tl.load(given_ptr + seq, mask=real & (token >= chunk_tokens), other=-1).to(tl.int64)
    newest = tl.where(given < 0, newest, given)
    page = tl.load(table_ptr + slot * stride_table + position // PAGE, mask=real, other=0).to(tl.int64)
    tl.store(ids_ptr + token, tl.where(in_chunk, ids.to(tl.int64), newest), mask=mask)
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


def prefill_inputs(
    layout: StepLayout, ring: torch.Tensor, sequence: torch.Tensor, cu_q: torch.Tensor, slots: torch.Tensor,
    contexts: torch.Tensor, given: torch.Tensor, page_table: torch.Tensor, last_token: torch.Tensor,
    ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor, batch_page_table: torch.Tensor,
    page_size: int,
) -> None:  # fmt: skip
    """Fill ids, positions, slot_mapping [T] int64 and the used part of batch_page_table [C + rows, pages] int32 from
    the descriptor unpacked last.

    Tokens beyond the last row become padding: id 0, position 0, slot_mapping -1.
    """
    seqs, tokens = slots.shape[0], ids.shape[0]
    _prefill_tokens_kernel[(triton.cdiv(tokens, TOKEN_BLOCK),)](
        ring, sequence, cu_q, slots, contexts, given, page_table, last_token, ids, positions, slot_mapping,
        page_table.stride(0), ring.shape[0], layout.width, layout.ids_at, tokens, CHUNKS=layout.chunks,
        BLOCK_C=triton.next_power_of_2(layout.chunks), PAGE=page_size, BLOCK=TOKEN_BLOCK, num_warps=2,
    )  # fmt: skip
    _page_rows_kernel[(seqs,)](
        slots, contexts, page_table, batch_page_table, page_table.stride(0), batch_page_table.stride(0), PAGE=page_size,
        BLOCK=PAGE_BLOCK, num_warps=2,
    )  # fmt: skip


def prefill_inputs_reference(
    layout: StepLayout, descriptor: torch.Tensor, page_table: torch.Tensor, last_token: torch.Tensor, tokens: int,
    page_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return ids, positions and slot_mapping [tokens] of a descriptor (one row of the ring), in plain torch."""
    slots, contexts, own = (layout.section(descriptor, name).tolist() for name in (SLOTS, CONTEXTS, GIVEN))
    ends = layout.section(descriptor, ENDS)[: layout.chunks].tolist()
    rows = range(layout.chunks, layout.chunks + int(descriptor[ROWS.value]))
    bounds = [0, *ends, *(ends[-1] + 1 + row for row in range(len(rows)))]
    ids, positions = torch.zeros((2, tokens), dtype=torch.int64)
    mapping = torch.full((tokens,), -1)
    for seq in (*range(layout.chunks), *rows):
        slot, context = slots[seq], contexts[seq]
        for token in range(bounds[seq], bounds[seq + 1]):
            position = context - (bounds[seq + 1] - token)
            given = descriptor[layout.ids_at + token]
            newest = last_token[slot] if own[seq] < 0 else own[seq]
            ids[token] = newest if seq in rows else given
            positions[token] = position
            mapping[token] = int(page_table[slot, position // page_size]) * page_size + position % page_size
    return ids, positions, mapping
