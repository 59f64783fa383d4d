"""The operations of --deterministic on the CPU: a token's bits follow from the tokens before it and its position alone.

Each kernel computes a row by itself, in an order that depends neither on the other rows nor on the number of threads
(kernels/cpu_*.py); a prompt's tokens attend one by one, as decode rows do. What is left to torch is exact: sums and
products of numbers, whose vectors and remainders round alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from kernels.cpu_ir import LANES
from quartet.checkpoint.experts import ExpertsSpec
from quartet.checkpoint.families import Activation
from quartet.wire.errors import ConfigError
from worker_proc.batch import ForwardBatch
from worker_proc.ops.compiled import CompiledAttention, CompiledGate, CompiledNorm
from worker_proc.ops.grouped import GroupedLinear
from worker_proc.ops.interface import (
    AllReduce,
    AttentionShape,
    Branch,
    HeadNorms,
    LayerKind,
    Linear,
    LinearState,
    LinearWeights,
)
from worker_proc.ops.torch_cache import empty_cache, write_tokens
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized
from worker_proc.weights.tensors import ExpertTensors

_BITS = {torch.float32: 32, torch.bfloat16: 16}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tokens `first` to `end` of a step, which attend to the first `lengths` [n] tokens of the pages in `table` [n,
    pages], both int64."""

    first: int
    end: int
    table: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class InvariantPlan:
    """A step for the layers of one kind: its rows, the slots [T] that keys and values are written to, and angles [T, D]
    as in LayerKind.cos_sin, or [1, D] for all."""

    rows: list[_Rows]
    slots: Tensor
    angles: Tensor
    kind: LayerKind


class InvariantCpuOps:
    """See Ops. Args: the attention's shape, the dtypes of the model and of the KV cache. Raises ConfigError for what it
    does not compute."""

    name = "torch"

    def __init__(self, shape: AttentionShape, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
        if dtype not in _BITS:
            raise ConfigError(f"--deterministic on a CPU computes in float32 or bfloat16, not in {_name(dtype)}")
        if kv_dtype != dtype:
            raise ConfigError("--deterministic on a CPU keeps keys and values as they are: drop --kv-cache-dtype")
        if shape.softcap or shape.has_sinks:
            raise ConfigError("--deterministic on a CPU knows no attention with softcaps or sinks: drop it")
        heads = {kind.heads for kind in shape.kinds}
        for one in heads:
            if one.head_dim % LANES:
                raise ConfigError(f"--deterministic on a CPU needs heads of a multiple of {LANES}, not {one.head_dim}")
        self._shape, self._dtype = shape, dtype
        self._norm, self._gate = CompiledNorm(), CompiledGate()
        self._attention = {one: CompiledAttention(one, shape.page_size, shape.scale, _BITS[dtype]) for one in heads}
        self._ones: dict[int, Tensor] = {}

    def loaded(self, weight: Weight) -> Weight:
        """See Ops.loaded."""
        is_kept = isinstance(weight, QuantizedWeight) and weight.kind in ("int4", "int8")
        return weight if is_kept else dequantized(weight, self._dtype)

    def linear(self, weight: Weight, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> GroupedLinear:
        """See Ops.linear."""
        return GroupedLinear(self.loaded(weight), bias, all_reduce)

    def mlp(
        self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None = None, activation: Activation = "silu"
    ) -> Branch:
        """See Ops.mlp."""
        if activation != "silu":
            raise ConfigError(f"--deterministic on a CPU knows no {activation} in an MLP: drop it")
        return _Mlp(self._gate, self.linear(gate_up), self.linear(down, None, all_reduce))

    def experts(
        self, spec: ExpertsSpec, tensors: ExpertTensors, shared: Branch | None, all_reduce: AllReduce | None = None
    ) -> NoReturn:
        """Not computed; see check_settings."""
        _refuse("experts")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.rms_norm; normalises over the last dimension, a multiple of LANES."""
        if self._dtype == torch.float32:
            return self._norm(x, weight, eps)
        size = len(weight)
        if size not in self._ones:
            self._ones[size] = torch.ones(size)
        return self._norm(x.float(), self._ones[size], eps).to(self._dtype).mul_(weight)

    def add_norm(
        self, branch: Branch, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops.add_norm."""
        residual = branch.add(x, residual)
        return self.rms_norm(residual, weight, eps), residual

    def allocate_kv(self, kinds: Sequence[int], num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """See Ops.allocate_kv; [num_pages, page_size, 2, Hkv, D]."""
        shape, heads = self._shape, [self._shape.kinds[kind].heads for kind in kinds]
        sizes = [(num_pages, shape.page_size, 2, one.num_kv_heads, one.head_dim) for one in heads]
        return [empty_cache(size, dtype, shape.device) for size in sizes]

    def plan(self, batch: ForwardBatch) -> Sequence[InvariantPlan]:
        """See Ops.plan."""
        kinds = self._shape.kinds
        groups = {kind.group: batch.of_group(kind.group) for kind in kinds}
        rows = {group: self._rows(own) for group, own in groups.items()}
        return [
            InvariantPlan(rows[kind.group], groups[kind.group].slot_mapping, _angles(batch, kind), kind)
            for kind in kinds
        ]

    def _rows(self, batch: ForwardBatch) -> list[_Rows]:
        found, first = list[_Rows](), 0
        if batch.chunks is not None:
            chunks = batch.chunks
            for at, (length, context) in enumerate(zip(chunks.lengths, chunks.context_lengths, strict=True)):
                # The tokens of a chunk share a row of the table.
                table = chunks.page_table[at].long().expand(length, -1)
                lengths = torch.arange(context - length + 1, context + 1)
                found.append(_Rows(first, first + length, table, lengths))
                first += length
        if batch.decode is not None:
            table, lengths = batch.decode.page_table.long(), batch.decode.context_lens.long()
            found.append(_Rows(first, first + len(lengths), table, lengths))
        return found

    def attention(
        self, plan: InvariantPlan, qkv: Tensor, kv: Tensor, norms: HeadNorms | None, sinks: Tensor | None = None
    ) -> Tensor:
        """See Ops.attention."""
        num_q, compiled = plan.kind.heads.query_size, self._attention[plan.kind.heads]
        self._rotate(plan, qkv, norms)
        write_tokens(kv, plan.slots, qkv[:, num_q:])
        query = qkv[:, :num_q].float()
        parts = [
            compiled.decode(query[rows.first : rows.end], kv, rows.table, rows.lengths, plan.kind.window)
            for rows in plan.rows
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._dtype)

    def _rotate(self, plan: InvariantPlan, qkv: Tensor, norms: HeadNorms | None) -> None:
        """Normalise and rotate the q and k heads in place, in fp32."""
        own, angles = plan.kind.heads, plan.angles
        count = own.num_heads + own.num_kv_heads
        heads = qkv[:, : count * own.head_dim].view(-1, count, own.head_dim)
        if norms is not None:
            for part, weight in ((heads[:, : own.num_heads], norms.q), (heads[:, own.num_heads :], norms.k)):
                part.copy_(self.rms_norm(part, weight, norms.eps))
        low, high = heads.float().chunk(2, dim=-1)
        cosine, sine = angles.unsqueeze(1).chunk(2, dim=-1)
        heads.copy_(torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1))

    def gate(self, x: Tensor, gate: Tensor) -> NoReturn:
        """Not computed: models with linear attention alone have gates."""
        _refuse("linear attention")

    def allocate_states(self, num_layers: int, num_rows: int, dtype: torch.dtype) -> NoReturn:
        """Not computed; see check_settings."""
        _refuse("linear attention")

    def linear_attention(
        self, plan: InvariantPlan, projected: Tensor, state: LinearState, weights: LinearWeights
    ) -> NoReturn:
        """Not computed; see check_settings."""
        _refuse("linear attention")


class _Mlp:
    """Gated MLP of two linears; see Branch."""

    def __init__(self, gate: CompiledGate, gate_up: Linear, down: Linear) -> None:
        self._gate, self._gate_up, self._down = gate, gate_up, down

    def __call__(self, x: Tensor) -> Tensor:
        """Return (silu(x G^T) * (x U^T)) D^T."""
        return self._down(self._hidden(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return self._down.add(self._hidden(x), residual)

    def _hidden(self, x: Tensor) -> Tensor:
        return self._gate(self._gate_up(x).float()).to(x.dtype)


def _angles(batch: ForwardBatch, kind: LayerKind) -> Tensor:
    return kind.cos_sin[batch.positions] if kind.is_rotated else kind.cos_sin


def _refuse(what: str) -> NoReturn:
    raise ConfigError(f"--deterministic does not work with {what}: drop it")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
