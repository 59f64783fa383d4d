"""One step as tensors: the inputs of the model and the sampler, built from StepRows without waiting for the device.

Token order: the tokens of the chunks one after the other, then one token of each decode row. Sampled rows: the last
token of each last chunk, then all decode rows, as in StepRows.sampled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker_proc.slots import IntArray, SlotTable, StepRows

Upload = Callable[[Sequence[NDArray[np.generic]]], list[Tensor]]


@dataclass(frozen=True, slots=True)
class ChunkBatch:
    """The prefill part: C chunks. `lengths` and `context_lengths` are on the host, in tokens; a context length
    includes the chunk. On the device: `cu_q` [C+1], `context_lens` [C] and `page_table` [C, n], int32, and `slots` [C],
    int32 or int64. `partition` is added by operations that partition the chunks' attention over programs once for all
    layers."""

    lengths: list[int]
    context_lengths: list[int]
    cu_q: Tensor
    context_lens: Tensor
    page_table: Tensor
    slots: Tensor
    num_tokens: int
    partition: Any = None


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """The decode part: B rows of one token. `context_lengths` [B] on the host includes the token being computed; on the
    device `context_lens` [B] and `page_table` [B, n], int32, and `slots` [B], int32 or int64. `workspace` is scratch of
    the attention kernel at a fixed address, if the caller has one that is large enough; then `context_lengths` is not
    used. `partition` is added by operations that partition the rows over programs once for all layers. With `first_row`
    [1] int32 on the device, the rows begin at that token, right after the chunks' last, and those of context length 0
    at the end are none. With `prefixes`, `context_lens` and `page_table` are of what follows the prefixes that rows
    share."""

    context_lengths: IntArray
    context_lens: Tensor
    page_table: Tensor
    slots: Tensor
    workspace: Tensor | None = None
    partition: Tensor | None = None
    first_row: Tensor | None = None
    prefixes: "PrefixBatch | None" = None


@dataclass(frozen=True, slots=True)
class PrefixBatch:
    """Prefixes that the rows of a decode batch share: `shared` as the attention kernel takes it, the page table of all
    slots, and the partition of the work, which is added by operations that partition it once for all layers."""

    shared: Any
    page_table: Tensor
    items: Any = None


@dataclass(frozen=True, slots=True)
class GroupPages:
    """The pages of a step in one page group: `slot_mapping` [T], and the page tables of chunks and of decode rows."""

    slot_mapping: Tensor
    chunk_table: Tensor | None
    decode_table: Tensor | None


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T tokens and R sampling layout. On the device: `input_ids`, `positions`, `slot_mapping` [T] int64 (page *
    page_size + offset), `sample_rows` (rows of T), `sample_slots` [R] int64 and `sample_positions` [R] int32, the
    indices of the tokens to sample in their sequences. `host_positions` is the same on the host, int64. Pages are those
    of group 0; `windows` has those of the other groups."""

    num_tokens: int
    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    sample_rows: Tensor
    sample_slots: Tensor
    sample_positions: Tensor
    host_positions: IntArray
    is_all_sampled: bool
    chunks: ChunkBatch | None
    decode: DecodeBatch | None
    windows: tuple[GroupPages, ...] = ()

    def of_group(self, group: int) -> "ForwardBatch":
        """Return the batch with the pages of a group."""
        if not group:
            return self
        own, chunks, decode = self.windows[group - 1], self.chunks, self.decode
        if chunks is not None and own.chunk_table is not None:
            chunks = replace(chunks, page_table=own.chunk_table)
        if decode is not None and own.decode_table is not None:
            decode = replace(decode, page_table=own.decode_table)
        return replace(self, slot_mapping=own.slot_mapping, chunks=chunks, decode=decode)


@dataclass(frozen=True, slots=True)
class _TokenLayout:
    """The step's rows on the host: per token slot and position, per chunk slot, length, cu_q, context and ids."""

    slots: IntArray
    positions: IntArray
    sample_rows: IntArray
    lengths: list[int]
    chunk_slots: IntArray
    chunk_ids: IntArray
    cu_q: NDArray[np.int32]
    chunk_contexts: NDArray[np.int32]


def build_batch(
    rows: StepRows, table: SlotTable, page_size: int, page_tables: Tensor, last_token: Tensor, upload: Upload
) -> ForwardBatch:
    """Return the batch of a step that has at least one token.

    Args:
        rows: the step, not yet committed to `table`.
        table: the host's lengths and pages.
        page_size: tokens per page.
        page_tables: the device's copy of the page tables, [groups, slots + 1, max_pages] int32.
        last_token: newest id of each slot, on the device, int64.
        upload: copies host arrays to the device without waiting.
    """
    layout = _lay_out(rows)
    mappings = [
        table.pages.at(layout.slots, layout.positions, group).astype(np.int64) * page_size
        + layout.positions % page_size
        for group in range(len(page_tables))
    ]
    host_positions = layout.positions[layout.sample_rows] + 1
    positions, sample_rows, sample_slots, sample_positions, decode_slots, decode_lens, mapping, *others = upload(
        (
            layout.positions,
            layout.sample_rows,
            rows.sampled,
            host_positions.astype(np.int32),
            rows.decode,
            rows.contexts.astype(np.int32),
            *mappings,
        )
    )
    input_ids, decode, chunks = last_token.index_select(0, decode_slots), None, None
    if rows.given is not None:
        (given,) = upload([rows.given])
        input_ids = torch.where(given < 0, input_ids, given)
    if len(rows.decode):
        pages_of_rows = _page_rows(page_tables[0], decode_slots, rows.contexts, page_size)
        decode = DecodeBatch(rows.contexts, decode_lens, pages_of_rows, decode_slots)
    if rows.chunks:
        ids, chunks = _chunk_batch(layout, page_size, page_tables[0], upload)
        input_ids = torch.cat((ids, input_ids))
    windows = tuple(
        _group_pages(own, own_table, page_size, rows, decode, chunks)
        for own, own_table in zip(others, page_tables[1:], strict=True)
    )
    return ForwardBatch(
        num_tokens=len(layout.slots),
        input_ids=input_ids,
        positions=positions,
        slot_mapping=mapping,
        sample_rows=sample_rows,
        sample_slots=sample_slots,
        sample_positions=sample_positions,
        host_positions=host_positions,
        is_all_sampled=len(layout.sample_rows) == len(layout.slots),
        chunks=chunks,
        decode=decode,
        windows=windows,
    )


def _group_pages(
    mapping: Tensor,
    page_table: Tensor,
    page_size: int,
    rows: StepRows,
    decode: DecodeBatch | None,
    chunks: ChunkBatch | None,
) -> GroupPages:
    decode_table, chunk_table = None, None
    if decode is not None:
        decode_table = _page_rows(page_table, decode.slots, rows.contexts, page_size)
    if chunks is not None:
        chunk_table = _page_rows(page_table, chunks.slots, np.array(chunks.context_lengths), page_size)
    return GroupPages(mapping, chunk_table, decode_table)


def _lay_out(rows: StepRows) -> _TokenLayout:
    chunks, decode = rows.chunks, rows.decode
    lengths = [len(chunk.ids) for chunk in chunks]
    chunk_slots = np.array([chunk.slot for chunk in chunks], dtype=np.int64)
    starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
    cu_q = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    last_rows = [end - 1 for end, chunk in zip(cu_q[1:].tolist(), chunks, strict=True) if chunk.is_last]
    positions = [np.arange(start, start + n) for start, n in zip(starts.tolist(), lengths, strict=True)]
    return _TokenLayout(
        slots=np.concatenate((np.repeat(chunk_slots, lengths), decode)),
        positions=np.concatenate((*positions, rows.contexts - 1)),
        sample_rows=np.concatenate((last_rows, np.arange(cu_q[-1], cu_q[-1] + len(decode)))).astype(np.int64),
        lengths=lengths,
        chunk_slots=chunk_slots,
        chunk_ids=np.concatenate([chunk.ids for chunk in chunks]) if chunks else np.empty(0, dtype=np.int64),
        cu_q=cu_q,
        chunk_contexts=(starts + lengths).astype(np.int32),
    )


def _chunk_batch(layout: _TokenLayout, page_size: int, page_table: Tensor, upload: Upload) -> tuple[Tensor, ChunkBatch]:
    contexts = layout.chunk_contexts
    slots, ids, cu_q, context_lens = upload((layout.chunk_slots, layout.chunk_ids, layout.cu_q, contexts))
    table = _page_rows(page_table, slots, contexts, page_size)
    return ids, ChunkBatch(layout.lengths, contexts.tolist(), cu_q, context_lens, table, slots, int(layout.cu_q[-1]))


def _page_rows(page_table: Tensor, rows: Tensor, contexts: NDArray[np.integer], page_size: int) -> Tensor:
    # Gathers whole rows, so that the stride, for which Triton specialises, does not depend on the context lengths.
    return page_table.index_select(0, rows)[:, : -(-int(contexts.max()) // page_size)]
