"""Inputs of a decode step, built on the device from an unpacked step descriptor (kernels.step_descriptor).

A context length includes the token being computed. Padding rows have the dummy slot and context length 0.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

PAGE_BLOCK = 256


@triton.jit
def _decode_inputs_kernel(
    slots_ptr, contexts_ptr, given_ptr, table_ptr, last_token_ptr, ids_ptr, positions_ptr, mapping_ptr,
    batch_page_table_ptr, prefixes_ptr, tails_ptr, stride_table, stride_batch_table,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, HAS_PREFIXES: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL)
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    context = tl.load(contexts_ptr + row)
    position = tl.maximum(context - 1, 0)
    source = table_ptr + slot * stride_table
    page = tl.load(source + position // PAGE).to(tl.int64)
    given = tl.load(given_ptr + row).to(tl.int64)
    tl.store(ids_ptr + row, tl.where(given < 0, tl.load(last_token_ptr + slot), given))
    tl.store(positions_ptr + row, position.to(tl.int64))
    tl.store(mapping_ptr + row, tl.where(context > 0, page * PAGE + position % PAGE, -1))
    target = batch_page_table_ptr + row.to(tl.int64) * stride_batch_table
    if HAS_PREFIXES:
        prefix = tl.load(prefixes_ptr + row)
        context -= prefix
        source += prefix // PAGE
        tl.store(tails_ptr + row, context)
    pages = (context + PAGE - 1) // PAGE
    for start in range(0, pages, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < pages, other=0), mask=at < pages)


def decode_inputs(
    slots: torch.Tensor, contexts: torch.Tensor, given: torch.Tensor, page_table: torch.Tensor,
    last_token: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor,
    batch_page_table: torch.Tensor, page_size: int, *, prefixes: torch.Tensor | None = None,
    tails: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Fill ids, positions and slot_mapping [B] int64, and the used part of batch_page_table [B, pages] int32.

    slots, contexts and given [B] int32, page_table [slots + 1, pages] int32, last_token [slots + 1] int64. A row's id
    is the given one, or its slot's newest if that is negative. A row with context length 0 gets slot_mapping -1. With
    `prefixes` [B] int32, tokens in whole pages at the beginning of each row, the page table has what follows them, and
    `tails` [B] int32 becomes the number of tokens that do.
    """
    shared = (contexts, contexts) if prefixes is None else (prefixes, tails)
    _decode_inputs_kernel[(slots.shape[0],)](
        slots, contexts, given, page_table, last_token, ids, positions, slot_mapping, batch_page_table, *shared,
        page_table.stride(0), batch_page_table.stride(0), PAGE=page_size, BLOCK=PAGE_BLOCK,
        HAS_PREFIXES=prefixes is not None, num_warps=2, **pdl_options(ids.device),
    )  # fmt: skip


def decode_inputs_reference(
    slots: torch.Tensor, contexts: torch.Tensor, given: torch.Tensor, page_table: torch.Tensor,
    last_token: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor, slot_mapping: torch.Tensor,
    batch_page_table: torch.Tensor, page_size: int, *, prefixes: torch.Tensor | None = None,
    tails: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """decode_inputs in plain torch."""
    rows, at = slots.long(), (contexts.long() - 1).clamp(min=0)
    ids.copy_(torch.where(given < 0, last_token[rows], given.long()))
    positions.copy_(at)
    places = page_table[rows, at // page_size].long() * page_size + at % page_size
    slot_mapping.copy_(torch.where(contexts > 0, places, -1))
    if prefixes is not None and tails is not None:
        tails.copy_(contexts - prefixes)
    for row, context in enumerate(contexts.tolist()):
        first, pages = 0 if prefixes is None else int(prefixes[row]) // page_size, -(-context // page_size)
        batch_page_table[row, : pages - first] = page_table[rows[row], first:pages]
