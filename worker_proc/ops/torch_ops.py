"""The operations in plain torch: used on the CPU, and the reference for every other implementation.

KV layout of a layer: [pages, page_size, 2, Hkv, D]. One token's k and v are contiguous, as in the fused qkv row, and
one `index_select` by page gathers both.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.experts import ExpertsSpec
from quartet.checkpoint.linear_attention import LinearSpec
from quartet.checkpoint.quantization import is_kept_on
from worker_proc.batch import ChunkBatch, DecodeBatch, ForwardBatch
from worker_proc.ops.experts import TorchExperts
from worker_proc.ops.interface import (
    AllReduce,
    AttentionShape,
    Branch,
    HeadNorms,
    Linear,
    LinearState,
    LinearWeights,
    zero_states,
)
from worker_proc.ops.length_groups import group_by_length
from worker_proc.ops.linear import PackedLinear, PackedMlp, PlainLinear, PlainMlp, can_prepack
from worker_proc.ops.quantized import DequantizingLinear, QuantizedMlp
from worker_proc.ops.torch_cache import empty_cache, read_pages, write_tokens
from worker_proc.ops.torch_linear_attention import TorchLinearAttention
from worker_proc.slots import IntArray
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized
from worker_proc.weights.tensors import ExpertTensors

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
class _Chunk:
    """One chunk: its `pages`, its tokens' rows `first` to `end`, and per query block (first, end, keys, mask)."""

    first: int
    end: int
    pages: Tensor
    blocks: list[tuple[int, int, int, Tensor | None]]


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """The attention plan of a step, `batch`, shared by all layers. `cos` and `signed_sin` are [T, 1, D] fp32, the first
    half of the sine negated."""

    batch: ForwardBatch
    cos: Tensor
    signed_sin: Tensor
    slot_mapping: Tensor
    chunks: list[_Chunk]
    groups: list[_Group]
    num_chunk_tokens: int
    num_tokens: int


class TorchOps:
    """See Ops. Args: the attention's shape, the model's dtype and device, and the sizes of linear attention if the
    model has such layers."""

    name = "torch"

    def __init__(
        self, shape: AttentionShape, dtype: torch.dtype, device: torch.device, linear: LinearSpec | None = None
    ) -> None:
        self._shape = shape
        self._linear_spec, self._linear = linear, None if linear is None else TorchLinearAttention(linear)
        self._dtype = dtype
        self._is_cpu = device.type == "cpu"
        self._is_packed = self._is_cpu and can_prepack(dtype)
        self._scalars: dict[float, Tensor] = {}
        half = shape.head_dim // 2
        cos, sin = shape.cos_sin[:, :half], shape.cos_sin[:, half:]
        self._cos = torch.cat((cos, cos), dim=-1).unsqueeze(1)
        self._signed_sin = torch.cat((-sin, sin), dim=-1).unsqueeze(1)

    def loaded(self, weight: Weight) -> Weight:
        """See Ops.loaded."""
        is_kept = isinstance(weight, QuantizedWeight) and is_kept_on(weight.kind, is_cuda=not self._is_cpu)
        return weight if is_kept else dequantized(weight, self._dtype)

    def linear(self, weight: Weight, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> Linear:
        """See Ops.linear."""
        weight = self.loaded(weight)
        if isinstance(weight, QuantizedWeight):
            return DequantizingLinear(weight, bias, all_reduce)
        return (PackedLinear if self._is_packed else PlainLinear)(weight, bias, all_reduce)

    def mlp(self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None = None) -> Branch:
        """See Ops.mlp."""
        gate_up, down = self.loaded(gate_up), self.loaded(down)
        if isinstance(gate_up, QuantizedWeight) or isinstance(down, QuantizedWeight):
            return QuantizedMlp(self.linear(gate_up), self.linear(down, None, all_reduce))
        return (PackedMlp if self._is_packed else PlainMlp)(gate_up, down, all_reduce)

    def experts(
        self, spec: ExpertsSpec, tensors: ExpertTensors, shared: Branch | None, all_reduce: AllReduce | None = None
    ) -> Branch:
        """See Ops.experts."""
        return TorchExperts(spec, tensors, shared, all_reduce, self.mlp)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.rms_norm; normalises over the last dimension."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        # The number of operators matters more than flops: a decode step on the CPU calls this 2 * layers + 1 times.
        inverse = torch.addcmul(self._scalar(eps), length, length, value=1.0 / x.shape[-1]).rsqrt_()
        return (wide * inverse).to(self._dtype).mul_(weight)

    def add_norm(
        self, branch: Branch, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops.add_norm."""
        residual = branch.add(x, residual)
        return self.rms_norm(residual, weight, eps), residual

    def allocate_kv(self, num_layers: int, num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """See Ops.allocate_kv; [num_pages, page_size, 2, Hkv, D]."""
        shape = self._shape
        size = (num_pages, shape.page_size, 2, shape.num_kv_heads, shape.head_dim)
        return [empty_cache(size, dtype, shape.cos_sin.device) for _ in range(num_layers)]

    def plan(self, batch: ForwardBatch) -> TorchPlan:
        """Gather rotation angles and compute pages and masks, once for all layers."""
        return TorchPlan(
            batch=batch,
            cos=self._cos.index_select(0, batch.positions),
            signed_sin=self._signed_sin.index_select(0, batch.positions),
            slot_mapping=batch.slot_mapping,
            chunks=[] if batch.chunks is None else self._plan_chunks(batch.chunks),
            groups=[] if batch.decode is None else self._plan_groups(batch.decode),
            num_chunk_tokens=0 if batch.chunks is None else batch.chunks.num_tokens,
            num_tokens=batch.num_tokens,
        )

    def unrotated(self, plan: TorchPlan) -> TorchPlan:
        """See Ops.unrotated; one row of angles is for all tokens."""
        return replace(plan, cos=self._cos[-1:], signed_sin=self._signed_sin[-1:])

    def attention(self, plan: TorchPlan, qkv: Tensor, kv: Tensor, norms: HeadNorms | None) -> Tensor:
        """See Ops.attention."""
        num_q = self._shape.num_heads * self._shape.head_dim
        self._rotate(plan, qkv, norms)
        write_tokens(kv, plan.slot_mapping, qkv[:, num_q:])
        query = qkv[:, :num_q]
        if plan.num_tokens > plan.num_chunk_tokens and not plan.chunks and plan.groups[0].rows is None:
            return self._decode(plan.groups[0], query, kv)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for chunk in plan.chunks:
            self._extend(chunk, query, kv, out)
        decode_query, decode_out = query[plan.num_chunk_tokens :], out[plan.num_chunk_tokens :]
        for group in plan.groups:
            if group.rows is None:
                decode_out.copy_(self._decode(group, decode_query, kv))
            else:
                rows = self._decode(group, decode_query.index_select(0, group.rows), kv)
                decode_out.index_copy_(0, group.rows, rows)
        return out

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """See Ops.gate."""
        return x * gate.sigmoid()

    def allocate_state(self, num_slots: int, dtype: torch.dtype) -> LinearState:
        """See Ops.allocate_state."""
        assert self._linear_spec is not None
        return zero_states(self._linear_spec, num_slots, dtype, self._shape.cos_sin.device)

    def linear_attention(
        self, plan: TorchPlan, projected: Tensor, state: LinearState, weights: LinearWeights
    ) -> Tensor:
        """See Ops.linear_attention."""
        assert self._linear is not None
        return self._linear(plan.batch, projected, state, weights)

    def _scalar(self, value: float) -> Tensor:
        found = self._scalars.get(value)
        if found is None:
            found = self._scalars[value] = torch.tensor(value, device=self._shape.cos_sin.device)
        return found

    def _rotate(self, plan: TorchPlan, qkv: Tensor, norms: HeadNorms | None) -> None:
        """Normalise and rotate the q and k heads in place, in fp32."""
        shape = self._shape
        num_rotated = shape.num_heads + shape.num_kv_heads
        heads = qkv[:, : num_rotated * shape.head_dim].view(-1, num_rotated, shape.head_dim)
        source = heads
        if norms is not None:
            q = self.rms_norm(heads[:, : shape.num_heads], norms.q, norms.eps)
            k = self.rms_norm(heads[:, shape.num_heads :], norms.k, norms.eps)
            source = torch.cat((q, k), dim=1)
        wide = source.float()
        rotated = wide.roll(shape.head_dim // 2, -1).mul_(plan.signed_sin)
        heads.copy_((wide * plan.cos).add_(rotated))

    def _decode(self, group: _Group, query: Tensor, kv: Tensor) -> Tensor:
        """Attend one query token per row; returns [B, H * D]."""
        shape, batch = self._shape, query.shape[0]
        keys, values = self._gather(group.pages, kv, batch, group.width)
        heads_per_kv = shape.num_heads // shape.num_kv_heads
        packed = query.reshape(batch, shape.num_kv_heads, heads_per_kv, shape.head_dim)
        out = functional.scaled_dot_product_attention(packed, keys, values, attn_mask=group.mask, scale=shape.scale)
        return out.reshape(batch, -1)

    def _extend(self, chunk: _Chunk, query: Tensor, kv: Tensor, out: Tensor) -> None:
        """Attend a chunk's queries to its cached and new tokens; KV heads are the batch dimension of the attention."""
        shape = self._shape
        heads_per_kv = shape.num_heads // shape.num_kv_heads
        width = chunk.pages.shape[0] * shape.page_size
        keys, values = self._gather(chunk.pages, kv, 1, width)
        keys = keys.transpose(0, 1).expand(-1, heads_per_kv, -1, -1)
        values = values.transpose(0, 1).expand(-1, heads_per_kv, -1, -1)
        grouped = query[chunk.first : chunk.end].view(-1, shape.num_kv_heads, heads_per_kv, shape.head_dim)
        grouped = grouped.permute(1, 2, 0, 3)
        target = out[chunk.first : chunk.end].view(-1, shape.num_kv_heads, heads_per_kv, shape.head_dim)
        for first, end, num_keys, mask in chunk.blocks:
            block = functional.scaled_dot_product_attention(
                grouped[:, :, first:end],
                keys[:, :, :num_keys],
                values[:, :, :num_keys],
                attn_mask=mask,
                scale=shape.scale,
            )
            target[first:end].copy_(block.permute(2, 0, 1, 3))

    def _gather(self, pages: Tensor, kv: Tensor, batch: int, width: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, Hkv, width, D], views of one gathered copy."""
        shape = self._shape
        tokens = read_pages(kv, pages, self._dtype).view(batch, width, 2, shape.num_kv_heads, shape.head_dim)
        return tokens[:, :, 0].transpose(1, 2), tokens[:, :, 1].transpose(1, 2)

    def _plan_chunks(self, chunks: ChunkBatch) -> list[_Chunk]:
        page_size, first = self._shape.page_size, 0
        plans: list[_Chunk] = []
        for row, (length, context) in enumerate(zip(chunks.lengths, chunks.context_lengths, strict=True)):
            pages = chunks.page_table[row, : -(-context // page_size)]
            plans.append(_Chunk(first, first + length, pages, self._blocks(length, context, pages.device)))
            first += length
        return plans

    def _blocks(self, length: int, context: int, device: torch.device) -> list[tuple[int, int, int, Tensor | None]]:
        blocks: list[tuple[int, int, int, Tensor | None]] = []
        cached = context - length
        for first in range(0, length, _QUERY_BLOCK):
            end = min(first + _QUERY_BLOCK, length)
            num_keys = cached + end
            limit = torch.arange(cached + first, num_keys, device=device).unsqueeze(1)
            hidden = torch.arange(num_keys, device=device) > limit
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device).masked_fill_(hidden, float("-inf"))
            blocks.append((first, end, num_keys, mask if end - first > 1 else None))
        return blocks

    def _plan_groups(self, decode: DecodeBatch) -> list[_Group]:
        lengths = decode.context_lengths
        parts = group_by_length(lengths)
        if len(parts) == 1:
            return [self._group(decode, lengths, None)]
        return [self._group(decode, lengths[rows], rows) for rows in parts]

    def _group(self, decode: DecodeBatch, lengths: IntArray, rows: IntArray | None) -> _Group:
        page_size, device = self._shape.page_size, decode.page_table.device
        num_pages = -(-int(lengths.max()) // page_size)
        table, lens = decode.page_table[:, :num_pages], decode.context_lens
        device_rows = None
        if rows is not None:
            device_rows = torch.from_numpy(rows).to(device)
            table, lens = table.index_select(0, device_rows), lens.index_select(0, device_rows)
        width = num_pages * page_size
        mask = None
        if int(lengths.min()) < width:
            hidden = torch.arange(width, device=device) >= lens.unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device).masked_fill_(hidden, float("-inf"))
            mask = mask[:, None, None, :]
        return _Group(device_rows, table.reshape(-1), mask, width)
