"""What a step of prompt chunks runs on, made on the device from a letter of the host (see kernels.step_inputs).

Runs of new tokens lie one after the other; a run is (slot, length, context after it). int32, with T tokens, C runs, W
page table writes; the runs' bounds rise from 0 and stay at the last token for runs that are not there:

    0 tokens | 1 writes | .. 8 | bounds [C + 1] | slots [C] | contexts [C] | sample rows [C] | sample positions [C]
    | ids [T], -1 for the slot's newest token | writes [W, 3]: (slot, index, page)

A run that does not sample has sample position 0.
"""

import torch
import triton
import triton.language as tl

from kernels.step_inputs import HEADER, PAGE_BLOCK, WRITE_BLOCK

TOKEN_BLOCK = 64


def prompt_letter_width(max_tokens: int, max_runs: int, max_writes: int) -> int:
    """int32 elements of a letter, padded so that each begins on a line of its own."""
    return -(-(HEADER + 5 * max_runs + 1 + max_tokens + 3 * max_writes) // 64) * 64


@triton.jit(do_not_specialize=["ring", "width"])
def _open_prompt_letter_kernel(
    ring_ptr, turn_ptr, bounds_ptr, slots_ptr, contexts_ptr, rows_ptr, positions_ptr, table_ptr, stride_table, ring,
    width, max_tokens, RUNS: tl.constexpr, BLOCK: tl.constexpr, HEADER: tl.constexpr, WRITE_BLOCK: tl.constexpr,
):  # fmt: skip
    turn = tl.load(turn_ptr) + 1
    tl.store(turn_ptr, turn)
    letter = ring_ptr + (turn % ring) * width
    num_writes = tl.load(letter + 1)
    index = tl.arange(0, BLOCK)
    keep = index < RUNS
    fields = letter + HEADER
    bounds = tl.load(fields + index, mask=index <= RUNS, other=0)
    slots = tl.load(fields + RUNS + 1 + index, mask=keep, other=0)
    contexts = tl.load(fields + 2 * RUNS + 1 + index, mask=keep, other=0)
    rows = tl.load(fields + 3 * RUNS + 1 + index, mask=keep, other=0)
    positions = tl.load(fields + 4 * RUNS + 1 + index, mask=keep, other=0)
    tl.store(bounds_ptr + index, bounds, mask=index <= RUNS)
    tl.store(slots_ptr + index, slots, mask=keep)
    tl.store(contexts_ptr + index, contexts, mask=keep)
    tl.store(rows_ptr + index, rows.to(tl.int64), mask=keep)
    tl.store(positions_ptr + index, positions, mask=keep)
    writes = fields + 5 * RUNS + 1 + max_tokens
    for start in range(0, num_writes, WRITE_BLOCK):
        at = start + tl.arange(0, WRITE_BLOCK)
        live = at < num_writes
        slot = tl.load(writes + 3 * at, mask=live, other=0)
        place = tl.load(writes + 3 * at + 1, mask=live, other=0)
        page = tl.load(writes + 3 * at + 2, mask=live, other=0)
        tl.store(table_ptr + slot.to(tl.int64) * stride_table + place, page, mask=live)


@triton.jit(do_not_specialize=["ring", "width", "tokens"])
def _prompt_tokens_kernel(
    ring_ptr, turn_ptr, bounds_ptr, slots_ptr, contexts_ptr, table_ptr, last_token_ptr, ids_ptr, positions_ptr,
    mapping_ptr, stride_table, ring, width, tokens,
    RUNS: tl.constexpr, BLOCK_RUNS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, HEADER: tl.constexpr,
):  # fmt: skip
    letter = ring_ptr + (tl.load(turn_ptr) % ring) * width
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = token < tokens
    ids = tl.load(letter + HEADER + 5 * RUNS + 1 + token, mask=live, other=0)
    index = tl.arange(0, BLOCK_RUNS)
    ends = tl.load(bounds_ptr + 1 + index, mask=index < RUNS, other=2147483647)
    run = tl.sum((ends[None, :] <= token[:, None]).to(tl.int32), 1)
    # Tokens beyond the last run are padding.
    real = live & (run < RUNS)
    end = tl.load(bounds_ptr + 1 + run, mask=real, other=0)
    slot = tl.load(slots_ptr + run, mask=real, other=0).to(tl.int64)
    position = tl.load(contexts_ptr + run, mask=real, other=0) - (end - token)
    position = tl.where(real, position, 0)
    newest = tl.load(last_token_ptr + slot, mask=real & (ids < 0), other=0)
    page = tl.load(table_ptr + slot * stride_table + position // PAGE, mask=real, other=0).to(tl.int64)
    tl.store(ids_ptr + token, tl.where(real, tl.where(ids < 0, newest, ids.to(tl.int64)), 0), mask=live)
    tl.store(positions_ptr + token, position.to(tl.int64), mask=live)
    tl.store(mapping_ptr + token, tl.where(real, page * PAGE + position % PAGE, -1), mask=live)


@triton.jit
def _run_pages_kernel(
    slots_ptr, contexts_ptr, table_ptr, rows_table_ptr, stride_table, stride_rows_table,
    PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0)
    source = table_ptr + tl.load(slots_ptr + run).to(tl.int64) * stride_table
    target = rows_table_ptr + run.to(tl.int64) * stride_rows_table
    pages = (tl.load(contexts_ptr + run) + PAGE - 1) // PAGE
    for start in range(0, pages, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < pages, other=0), mask=at < pages)


def open_prompt_letter(
    ring: torch.Tensor, turn: torch.Tensor, bounds: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor,
    sample_rows: torch.Tensor, sample_positions: torch.Tensor, page_table: torch.Tensor, *, max_tokens: int,
) -> None:  # fmt: skip
    """Take the next letter: fill bounds [C + 1], slots, contexts, sample_positions [C] int32 and sample_rows [C] int64,
    and apply its page table writes.

    ring [letters, width] int32, readable by the device; turn [1] int32, raised by one; page_table [slots + 1, pages]
    int32, mutated; `max_tokens` is the T of the letter's layout.
    """
    runs = slots.shape[0]
    _open_prompt_letter_kernel[(1,)](
        ring, turn, bounds, slots, contexts, sample_rows, sample_positions, page_table, page_table.stride(0),
        ring.shape[0], ring.shape[1], max_tokens, RUNS=runs, BLOCK=triton.next_power_of_2(runs + 1), HEADER=HEADER,
        WRITE_BLOCK=WRITE_BLOCK, num_warps=4,
    )  # fmt: skip


def prompt_inputs(
    ring: torch.Tensor, turn: torch.Tensor, bounds: torch.Tensor, slots: torch.Tensor, contexts: torch.Tensor,
    page_table: torch.Tensor, last_token: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor,
    slot_mapping: torch.Tensor, rows_table: torch.Tensor, page_size: int,
) -> None:  # fmt: skip
    """Fill ids, positions, slot_mapping [T] int64 and the used part of rows_table [C, pages] int32 of the open letter.

    Tokens beyond the last run become padding: id 0, position 0, slot_mapping -1.
    """
    runs, tokens = slots.shape[0], ids.shape[0]
    _prompt_tokens_kernel[(triton.cdiv(tokens, TOKEN_BLOCK),)](
        ring, turn, bounds, slots, contexts, page_table, last_token, ids, positions, slot_mapping,
        page_table.stride(0), ring.shape[0], ring.shape[1], tokens, RUNS=runs,
        BLOCK_RUNS=triton.next_power_of_2(runs), PAGE=page_size, BLOCK=TOKEN_BLOCK, HEADER=HEADER, num_warps=2,
    )  # fmt: skip
    _run_pages_kernel[(runs,)](
        slots, contexts, page_table, rows_table, page_table.stride(0), rows_table.stride(0), PAGE=page_size,
        BLOCK=PAGE_BLOCK, num_warps=2,
    )  # fmt: skip


def prompt_inputs_reference(
    letter: torch.Tensor, runs: int, page_table: torch.Tensor, last_token: torch.Tensor, tokens: int, page_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, positions and slot_mapping [tokens] of an open letter (one row of the ring), in plain torch."""
    bounds = letter[HEADER : HEADER + runs + 1].tolist()
    slots = letter[HEADER + runs + 1 :][:runs].tolist()
    contexts = letter[HEADER + 2 * runs + 1 :][:runs].tolist()
    given = letter[HEADER + 5 * runs + 1 :]
    ids, positions = torch.zeros((2, tokens), dtype=torch.int64)
    mapping = torch.full((tokens,), -1)
    for run, (slot, context) in enumerate(zip(slots, contexts, strict=True)):
        for token in range(bounds[run], bounds[run + 1]):
            position = context - (bounds[run + 1] - token)
            ids[token] = last_token[slot] if given[token] < 0 else given[token]
            positions[token] = position
            mapping[token] = int(page_table[slot, position // page_size]) * page_size + position % page_size
    return ids, positions, mapping
