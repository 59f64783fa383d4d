"""The operations in plain torch: used on the CPU, and the reference for every other implementation.

KV layout of a layer: [pages, page_size, 2, Hkv, D]. One token's k and v are contiguous, as in the fused qkv row, and
one `index_select` by page gathers both (torch_attention.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.experts import ExpertsSpec
from quartet.checkpoint.families import Activation
from quartet.checkpoint.linear_attention import LinearSpec
from quartet.checkpoint.quantization import is_kept_on
from worker_proc.batch import ForwardBatch
from worker_proc.ops.experts import TorchExperts
from worker_proc.ops.interface import (
    AllReduce,
    AttentionShape,
    Branch,
    HeadNorms,
    LayerKind,
    Linear,
    LinearState,
    LinearWeights,
    zero_states,
)
from worker_proc.ops.linear import PackedLinear, PackedMlp, PlainLinear, PlainMlp, can_prepack
from worker_proc.ops.quantized import DequantizingLinear, QuantizedMlp
from worker_proc.ops.torch_attention import AttentionPlan, TorchAttention
from worker_proc.ops.torch_cache import empty_cache, write_tokens
from worker_proc.ops.torch_linear_attention import TorchLinearAttention
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized
from worker_proc.weights.tensors import ExpertTensors


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """The plan of a step, `batch`, shared by all layers of a `kind`. `cos` and `signed_sin` are [T, 1, D] fp32, or one
    row for all tokens, the first half of the sine negated."""

    batch: ForwardBatch
    kind: LayerKind
    cos: Tensor
    signed_sin: Tensor
    attention: AttentionPlan


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
        self._attention = TorchAttention(shape, dtype)

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

    def mlp(
        self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None = None, activation: Activation = "silu"
    ) -> Branch:
        """See Ops.mlp."""
        gate_up, down = self.loaded(gate_up), self.loaded(down)
        if isinstance(gate_up, QuantizedWeight) or isinstance(down, QuantizedWeight):
            return QuantizedMlp(self.linear(gate_up), self.linear(down, None, all_reduce), activation)
        return (PackedMlp if self._is_packed else PlainMlp)(gate_up, down, all_reduce, activation)

    def experts(
        self, spec: ExpertsSpec, tensors: ExpertTensors, shared: Branch | None, all_reduce: AllReduce | None = None
    ) -> Branch:
        """See Ops.experts."""
        return TorchExperts(spec, tensors, shared, all_reduce, self.mlp, self.linear)

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

    def allocate_kv(self, kinds: Sequence[int], num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """See Ops.allocate_kv; [num_pages, page_size, 2, Hkv, D]."""
        shape, heads = self._shape, [self._shape.kinds[kind].heads for kind in kinds]
        sizes = [(num_pages, shape.page_size, 2, one.num_kv_heads, one.head_dim) for one in heads]
        return [empty_cache(size, dtype, shape.device) for size in sizes]

    def plan(self, batch: ForwardBatch) -> list[TorchPlan]:
        """Gather rotation angles and compute pages and masks, once for all layers of a kind."""
        kinds = self._shape.kinds
        angles = {id(kind.cos_sin): _angles(kind, batch.positions) for kind in kinds}
        batches = {kind.group: batch.of_group(kind.group) for kind in kinds}
        plans = {kind.window: self._attention.plan(batches[kind.group], kind.window) for kind in kinds}
        return [TorchPlan(batches[kind.group], kind, *angles[id(kind.cos_sin)], plans[kind.window]) for kind in kinds]

    def attention(
        self, plan: TorchPlan, qkv: Tensor, kv: Tensor, norms: HeadNorms | None, sinks: Tensor | None = None
    ) -> Tensor:
        """See Ops.attention."""
        num_q, qkv = plan.kind.heads.query_size, with_values(qkv, plan.kind.heads)
        self._rotate(plan, qkv, norms)
        write_tokens(kv, plan.batch.slot_mapping, qkv[:, num_q:])
        return self._attention(plan.attention, qkv[:, :num_q], kv, sinks)

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """See Ops.gate."""
        return x * gate.sigmoid()

    def allocate_states(self, num_layers: int, num_rows: int, dtype: torch.dtype) -> LinearState:
        """See Ops.allocate_states."""
        assert self._linear_spec is not None
        return zero_states(self._linear_spec, num_rows, dtype, self._shape.device, num_layers)

    def linear_attention(
        self, plan: TorchPlan, projected: Tensor, state: LinearState, weights: LinearWeights
    ) -> Tensor:
        """See Ops.linear_attention."""
        assert self._linear is not None
        return self._linear(plan.batch, projected, state, weights)

    def _scalar(self, value: float) -> Tensor:
        found = self._scalars.get(value)
        if found is None:
            found = self._scalars[value] = torch.tensor(value, device=self._shape.device)
        return found

    def _rotate(self, plan: TorchPlan, qkv: Tensor, norms: HeadNorms | None) -> None:
        """Normalise q, k and v heads, and rotate q and k, in place, in fp32."""
        own = plan.kind.heads
        num_rotated = own.num_heads + own.num_kv_heads
        heads = qkv[:, : num_rotated * own.head_dim].view(-1, num_rotated, own.head_dim)
        source = heads
        if norms is not None:
            q = self.rms_norm(heads[:, : own.num_heads], norms.q, norms.eps)
            k = self.rms_norm(heads[:, own.num_heads :], norms.k, norms.eps)
            source = torch.cat((q, k), dim=1)
            if norms.v is not None:
                values = qkv[:, num_rotated * own.head_dim :].unflatten(1, (-1, own.head_dim))
                values.copy_(self.rms_norm(values, norms.v, norms.eps))
        wide = source.float()
        rotated = wide.roll(own.head_dim // 2, -1).mul_(plan.signed_sin)
        heads.copy_((wide * plan.cos).add_(rotated))


def with_values(qkv: Tensor, heads: Heads) -> Tensor:
    """Return rows of q, k and v, where those given may lack v."""
    return qkv if heads.has_values else torch.cat((qkv, qkv[:, heads.query_size :]), dim=-1)


def _angles(kind: LayerKind, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines [T, 1, D] of the positions [T], or of all where nothing is rotated."""
    cos, sin = (kind.cos_sin.index_select(0, positions) if kind.is_rotated else kind.cos_sin).chunk(2, dim=-1)
    return torch.cat((cos, cos), dim=-1).unsqueeze(1), torch.cat((-sin, sin), dim=-1).unsqueeze(1)
