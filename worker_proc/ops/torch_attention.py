"""Attention over the KV pages in plain torch, for TorchOps: gathers the pages that a window reaches, and attends.

KV layout of a layer: [pages, page_size, 2, Hkv, D].
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from worker_proc.batch import ChunkBatch, DecodeBatch, ForwardBatch
from worker_proc.ops.interface import AttentionShape
from worker_proc.ops.length_groups import group_by_length
from worker_proc.ops.torch_cache import read_pages
from worker_proc.slots import IntArray

# Queries of a chunk attend in blocks, so that later keys are not read and the mask stays small.
_QUERY_BLOCK = 256


@dataclass(frozen=True, slots=True)
class _Group:
    """Decode rows that attend together: `rows` of the decode part (None: all, in order), `pages` [B * n], `mask`
    [B, 1, 1, n * page_size] or None, and n * page_size as `width`."""

    rows: Tensor | None
    pages: Tensor
    mask: Tensor | None
    width: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries `first` to `end` of a chunk attend to `keys` of its pages' tokens, under a mask [queries, keys]."""

    first: int
    end: int
    keys: slice
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One chunk: its tokens' rows `first` to `end`, the `pages` that they see, and its blocks of queries."""

    first: int
    end: int
    pages: Tensor
    blocks: list[_Block]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Who attends to what, for the layers of one window."""

    chunks: list[_Chunk]
    groups: list[_Group]
    num_chunk_tokens: int
    num_tokens: int


class TorchAttention:
    """Args: the attention's shape, and the model's dtype."""

    def __init__(self, shape: AttentionShape, dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype

    def plan(self, batch: ForwardBatch, window: int) -> AttentionPlan:
        """Return the plan for layers with this window, 0 for none."""
        return AttentionPlan(
            chunks=[] if batch.chunks is None else self._plan_chunks(batch.chunks, window),
            groups=[] if batch.decode is None else self._plan_groups(batch.decode, window),
            num_chunk_tokens=0 if batch.chunks is None else batch.chunks.num_tokens,
            num_tokens=batch.num_tokens,
        )

    def __call__(self, plan: AttentionPlan, query: Tensor, kv: Tensor, sinks: Tensor | None) -> Tensor:
        """Return the attention [T, H D] of queries [T, H D]; see Ops.attention."""
        if plan.num_tokens > plan.num_chunk_tokens and not plan.chunks and plan.groups[0].rows is None:
            return self._decode(plan.groups[0], query, kv, sinks)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for chunk in plan.chunks:
            self._extend(chunk, query, kv, out, sinks)
        decode_query, decode_out = query[plan.num_chunk_tokens :], out[plan.num_chunk_tokens :]
        for group in plan.groups:
            if group.rows is None:
                decode_out.copy_(self._decode(group, decode_query, kv, sinks))
            else:
                rows = self._decode(group, decode_query.index_select(0, group.rows), kv, sinks)
                decode_out.index_copy_(0, group.rows, rows)
        return out

    def _decode(self, group: _Group, query: Tensor, kv: Tensor, sinks: Tensor | None) -> Tensor:
        """Attend one query token per row; returns [B, H * D]."""
        batch, (kv_heads, head_dim) = query.shape[0], kv.shape[3:]
        keys, values = self._gather(group.pages, kv, batch, group.width)
        packed = query.reshape(batch, kv_heads, -1, head_dim)
        own = None if sinks is None else sinks.view(kv_heads, -1, 1)
        return self._attend(packed, keys, values, group.mask, own).reshape(batch, -1)

    def _extend(self, chunk: _Chunk, query: Tensor, kv: Tensor, out: Tensor, sinks: Tensor | None) -> None:
        """Attend a chunk's queries to its cached and new tokens; KV heads are the batch dimension of the attention."""
        kv_heads, head_dim = kv.shape[3:]
        heads = kv_heads, query.shape[1] // (kv_heads * head_dim)
        keys, values = self._gather(chunk.pages, kv, 1, chunk.pages.shape[0] * self._shape.page_size)
        keys = keys.transpose(0, 1).expand(-1, heads[1], -1, -1)
        values = values.transpose(0, 1).expand(-1, heads[1], -1, -1)
        grouped = query[chunk.first : chunk.end].view(-1, *heads, head_dim).permute(1, 2, 0, 3)
        target = out[chunk.first : chunk.end].view(-1, *heads, head_dim)
        own = None if sinks is None else sinks.view(*heads, 1, 1)
        for block in chunk.blocks:
            queries = slice(block.first, block.end)
            attended = self._attend(
                grouped[:, :, queries], keys[:, :, block.keys], values[:, :, block.keys], block.mask, own
            )
            target[queries].copy_(attended.permute(2, 0, 1, 3))

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
        """Return softmax(q K^T) V with the model's softcap, and the sinks beside the scores; fp32 maths with either."""
        shape = self._shape
        if not shape.softcap and sinks is None:
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=shape.scale)
        scores = (query.float() @ keys.float().transpose(-1, -2)).mul_(shape.scale)
        if shape.softcap:
            scores = scores.div_(shape.softcap).tanh_().mul_(shape.softcap)
        if mask is not None:
            scores = scores.add_(mask)
        num_keys = scores.shape[-1]
        if sinks is not None:
            scores = torch.cat((scores, sinks.float().expand(*scores.shape[:-1], 1)), dim=-1)
        weights = scores.softmax(-1)[..., :num_keys]
        return (weights @ values.float()).to(self._dtype)

    def _gather(self, pages: Tensor, kv: Tensor, batch: int, width: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, Hkv, width, D], views of one gathered copy."""
        tokens = read_pages(kv, pages, self._dtype).view(batch, width, 2, *kv.shape[3:])
        return tokens[:, :, 0].transpose(1, 2), tokens[:, :, 1].transpose(1, 2)

    def _plan_chunks(self, chunks: ChunkBatch, window: int) -> list[_Chunk]:
        page_size, first = self._shape.page_size, 0
        plans: list[_Chunk] = []
        for row, (length, context) in enumerate(zip(chunks.lengths, chunks.context_lengths, strict=True)):
            first_page = max(context - length + 1 - window, 0) // page_size if window else 0
            pages = chunks.page_table[row, first_page : -(-context // page_size)]
            blocks = self._blocks(length, context, window, first_page * page_size, pages.device)
            plans.append(_Chunk(first, first + length, pages, blocks))
            first += length
        return plans

    def _blocks(self, length: int, context: int, window: int, origin: int, device: torch.device) -> list[_Block]:
        """Return the blocks of a chunk whose pages begin with the token at `origin`."""
        blocks: list[_Block] = []
        cached = context - length
        for first in range(0, length, _QUERY_BLOCK):
            end = min(first + _QUERY_BLOCK, length)
            begin = max(cached + first + 1 - window, 0) if window else 0
            positions = torch.arange(cached + first, cached + end, device=device).unsqueeze(1)
            keys = torch.arange(begin, cached + end, device=device)
            hidden = keys > positions
            if window:
                hidden |= keys <= positions - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device).masked_fill_(hidden, float("-inf"))
            own = slice(begin - origin, cached + end - origin)
            blocks.append(_Block(first, end, own, mask if end - first > 1 else None))
        return blocks

    def _plan_groups(self, decode: DecodeBatch, window: int) -> list[_Group]:
        lengths = decode.context_lengths
        parts = group_by_length(np.minimum(lengths, window) if window else lengths)
        if len(parts) == 1:
            return [self._group(decode, lengths, None, window)]
        return [self._group(decode, lengths[rows], rows, window) for rows in parts]

    def _group(self, decode: DecodeBatch, lengths: IntArray, rows: IntArray | None, window: int) -> _Group:
        page_size, device = self._shape.page_size, decode.page_table.device
        table, lens, device_rows = decode.page_table, decode.context_lens, None
        if rows is not None:
            device_rows = torch.from_numpy(rows).to(device)
            table, lens = table.index_select(0, device_rows), lens.index_select(0, device_rows)
        first_pages = np.maximum(lengths - window, 0) // page_size if window else np.zeros_like(lengths)
        num_pages = int((-(-lengths // page_size) - first_pages).max())
        width, mask = num_pages * page_size, None
        positions = torch.arange(width, device=device)
        if window:
            starts = torch.from_numpy(first_pages.astype(np.int64)).to(device).unsqueeze(1)
            # Rows with fewer pages than others repeat a page, which the mask hides.
            columns = (starts + torch.arange(num_pages, device=device)).clamp_(max=table.shape[1] - 1)
            table, positions = table.gather(1, columns), positions + starts * page_size
        if window or int(lengths.min()) < width:
            hidden = positions >= lens.unsqueeze(1)
            if window:
                hidden |= positions < lens.unsqueeze(1) - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device).masked_fill_(hidden, float("-inf"))
            mask = mask[:, None, None, :]
        return _Group(device_rows, table[:, :num_pages].reshape(-1), mask, width)
