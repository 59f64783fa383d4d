"""Experts in plain torch: a loop over those that are touched."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.experts import ExpertsSpec, Gating
from worker_proc.ops.interface import AllReduce, Branch, Linear
from worker_proc.weights.quantized import Weight
from worker_proc.weights.tensors import ExpertTensors


def choose_experts(spec: ExpertsSpec, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [T, top_k], fp32, and the numbers of each token's experts, from fp32 scores [T, E]."""
    weights, chosen = functional.softmax(scores, dim=-1).topk(spec.top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True) if spec.is_normalised else weights, chosen


def gated(gate_up: Tensor, gating: Gating) -> Tensor:
    """Return [T, I] of gate_up [T, 2 I], in which columns of gate and up take turns."""
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    if gating.limit:
        gate, up = gate.clamp(max=gating.limit), up.clamp(-gating.limit, gating.limit)
    return gate * (gate * gating.factor).sigmoid_() * (up + gating.offset)


class GatedExpert:
    """An expert of two linears with biases. Its Branch is `down`'s, whose input is that of the gate."""

    def __init__(self, gate_up: Linear, down: Linear, gating: Gating) -> None:
        self._gate_up, self._down, self._gating = gate_up, down, gating

    def __call__(self, x: Tensor) -> Tensor:
        """See Branch."""
        return self._down(gated(self._gate_up(x), self._gating))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return residual + self(x)


class TorchExperts:
    """See Ops.experts. Each expert is a gated MLP that `make_mlp` packs, or two linears with biases."""

    def __init__(
        self,
        spec: ExpertsSpec,
        tensors: ExpertTensors,
        shared: Branch | None,
        all_reduce: AllReduce | None,
        make_mlp: Callable[[Weight, Weight], Branch],
        make_linear: Callable[[Weight, Tensor | None], Linear],
    ) -> None:
        self._spec, self._shared, self._all_reduce = spec, shared, all_reduce
        self._router = tensors.router.float()
        self._router_bias = None if tensors.router_bias is None else tensors.router_bias.float()
        self._shared_gate, biases = tensors.shared_gate, tensors.biases

        def expert(number: int) -> Branch:
            gate_up, down = tensors.expert(number)
            if biases is None and isinstance(gate_up, Tensor):
                return make_mlp(torch.cat((gate_up[::2], gate_up[1::2])), down)
            first, second = (None, None) if biases is None else (biases[0][number], biases[1][number])
            return GatedExpert(make_linear(gate_up, first), make_linear(down, second), spec.gating)

        self._experts = [expert(number) for number in range(spec.count)]

    def __call__(self, x: Tensor) -> Tensor:
        """See Branch. The contributions to a token are added in the order of its experts' numbers."""
        scores = functional.linear(x.float(), self._router, self._router_bias)
        weights, chosen = choose_experts(self._spec, scores)
        out = torch.zeros_like(x)
        # Pairs of token and choice, in order of the experts.
        experts, pairs = chosen.view(-1).sort(stable=True)
        numbers, counts = experts.unique_consecutive(return_counts=True)
        for number, own in zip(numbers.tolist(), pairs.split(counts.tolist()), strict=True):
            tokens = own // self._spec.top_k
            y = self._experts[number](x.index_select(0, tokens))
            out.index_add_(0, tokens, y * weights.view(-1, 1)[own].to(y.dtype))
        if self._shared is not None:
            out += self._share(x) * self._shared(x)
        return out if self._all_reduce is None else self._all_reduce(out)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return residual + self(x)

    def _share(self, x: Tensor) -> Tensor | float:
        return 1.0 if self._shared_gate is None else functional.linear(x, self._shared_gate).sigmoid_()
