"""The operations on the CPU where llvmlite is there: those of TorchOps, but for what is compiled (kernels/cpu_*.py).

Compiled are linears whose weight is integers; in float32 also norms, and rotation and attention of steps that only
decode. A decode step of a small model is bound by the number of operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu_ir import LANES
from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.experts import ExpertsSpec
from quartet.checkpoint.families import Activation
from quartet.checkpoint.linear_attention import LinearSpec
from worker_proc.batch import ForwardBatch
from worker_proc.ops.compiled import CompiledAttention, CompiledNorm
from worker_proc.ops.experts import TorchExperts
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
from worker_proc.ops.quantized import QuantizedMlp
from worker_proc.ops.torch_ops import TorchOps, TorchPlan, with_values
from worker_proc.weights.quantized import QuantizedWeight, Weight, mxfp4_as_bytes
from worker_proc.weights.tensors import ExpertTensors


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """A step that only decodes: pages [B, n], context lengths [B] and slots [B] of its rows; angles [B, D] of a kind's
    table."""

    table: Tensor
    lengths: Tensor
    slots: Tensor
    angles: Tensor
    kind: LayerKind


class CpuOps:
    """See Ops. Args: the attention's shape, the model's dtype, and the sizes of linear attention if it has any."""

    name = "torch"

    def __init__(self, shape: AttentionShape, dtype: torch.dtype, linear: LinearSpec | None = None) -> None:
        self._torch = TorchOps(shape, dtype, torch.device("cpu"), linear)
        self._has_linear_attention = linear is not None
        self._shape = shape
        heads, self._norm = {kind.heads for kind in shape.kinds}, None
        self._compiled: dict[Heads, CompiledAttention] = {}
        if dtype == torch.float32 and all(one.head_dim % (2 * LANES) == 0 for one in heads):
            self._norm = CompiledNorm()
            self._compiled = {one: CompiledAttention(one, shape.page_size, shape.scale) for one in heads}
        self._can_attend = False

    def loaded(self, weight: Weight) -> Weight:
        """See Ops.loaded. Of MXFP4 the CPU computes in whole numbers of 8 bits."""
        if isinstance(weight, QuantizedWeight) and weight.kind == "mxfp4":
            return mxfp4_as_bytes(weight)
        return self._torch.loaded(weight)

    def linear(self, weight: Weight, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> Linear:
        """See Ops.linear."""
        weight = self.loaded(weight)
        if isinstance(weight, QuantizedWeight) and weight.kind in ("int4", "int8"):
            return GroupedLinear(weight, bias, all_reduce)
        return self._torch.linear(weight, bias, all_reduce)

    def mlp(
        self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None = None, activation: Activation = "silu"
    ) -> Branch:
        """See Ops.mlp."""
        gate_up, down = self.loaded(gate_up), self.loaded(down)
        if isinstance(gate_up, QuantizedWeight) or isinstance(down, QuantizedWeight):
            return QuantizedMlp(self.linear(gate_up), self.linear(down, None, all_reduce), activation)
        return self._torch.mlp(gate_up, down, all_reduce, activation)

    def experts(
        self, spec: ExpertsSpec, tensors: ExpertTensors, shared: Branch | None, all_reduce: AllReduce | None = None
    ) -> Branch:
        """See Ops.experts."""
        return TorchExperts(spec, tensors, shared, all_reduce, self.mlp, self.linear)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See Ops.rms_norm; normalises over the last dimension."""
        if self._norm is None or x.shape[-1] % LANES:
            return self._torch.rms_norm(x, weight, eps)
        return self._norm(x, weight, eps)

    def add_norm(
        self, branch: Branch, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See Ops.add_norm."""
        residual = branch.add(x, residual)
        return self.rms_norm(residual, weight, eps), residual

    def allocate_kv(self, kinds: Sequence[int], num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """See Ops.allocate_kv."""
        is_compiled = bool(self._compiled) and dtype == torch.float32
        shape = self._shape
        is_plain = not (shape.softcap or shape.has_sinks)
        self._can_attend = is_compiled and is_plain and not self._has_linear_attention
        return self._torch.allocate_kv(kinds, num_pages, dtype)

    def plan(self, batch: ForwardBatch) -> Sequence[TorchPlan | DecodePlan]:
        """See Ops.plan."""
        decode = batch.decode
        if not self._can_attend or decode is None or batch.chunks is not None:
            return self._torch.plan(batch)
        kinds, lengths = self._shape.kinds, decode.context_lens.long()
        rows = {kind.group: self._rows(batch.of_group(kind.group), lengths) for kind in kinds}
        return [
            DecodePlan(*rows[kind.group], kind.cos_sin[batch.positions] if kind.is_rotated else kind.cos_sin, kind)
            for kind in kinds
        ]

    def _rows(self, batch: ForwardBatch, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert batch.decode is not None
        num_pages = -(-int(batch.decode.context_lengths.max()) // self._shape.page_size)
        return batch.decode.page_table[:, :num_pages].long(), lengths, batch.slot_mapping

    def attention(
        self,
        plan: TorchPlan | DecodePlan,
        qkv: Tensor,
        kv: Tensor,
        norms: HeadNorms | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See Ops.attention."""
        if isinstance(plan, TorchPlan):
            return self._torch.attention(plan, qkv, kv, norms, sinks)
        assert self._can_attend
        own, compiled = plan.kind.heads, self._compiled[plan.kind.heads]
        qkv = with_values(qkv, own)
        if norms is not None:
            parts = qkv.split((own.query_size, own.kv_size, own.kv_size), dim=-1)
            for part, weight in zip(parts, (norms.q, norms.k, norms.v), strict=True):
                if weight is not None:
                    heads = part.reshape(len(part), -1, own.head_dim)
                    part.copy_(self.rms_norm(heads, weight, norms.eps).view(part.shape))
        compiled.rotate_and_write(qkv, plan.angles, kv, plan.slots)
        return compiled.decode(qkv[:, : own.query_size], kv, plan.table, plan.lengths, plan.kind.window)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """See Ops.gate."""
        return self._torch.gate(x, gate)

    def allocate_states(self, num_layers: int, num_rows: int, dtype: torch.dtype) -> LinearState:
        """See Ops.allocate_states."""
        return self._torch.allocate_states(num_layers, num_rows, dtype)

    def linear_attention(
        self, plan: TorchPlan | DecodePlan, projected: Tensor, state: LinearState, weights: LinearWeights
    ) -> Tensor:
        """See Ops.linear_attention."""
        assert isinstance(plan, TorchPlan)
        return self._torch.linear_attention(plan, projected, state, weights)
