"""Experts in plain torch: a loop over those that are touched."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.experts import ExpertsSpec
from worker_proc.ops.interface import AllReduce, Branch
from worker_proc.weights.tensors import ExpertTensors


def choose_experts(spec: ExpertsSpec, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [T, top_k], fp32, and the numbers of each token's experts, from fp32 scores [T, E]."""
    weights, chosen = functional.softmax(scores, dim=-1).topk(spec.top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True) if spec.is_normalised else weights, chosen


class TorchExperts:
    """See Ops.experts. Each expert is a gated MLP that `make_mlp` packs."""

    def __init__(
        self,
        spec: ExpertsSpec,
        tensors: ExpertTensors,
        shared: Branch | None,
        all_reduce: AllReduce | None,
        make_mlp: Callable[[Tensor, Tensor], Branch],
    ) -> None:
        self._spec, self._shared, self._all_reduce = spec, shared, all_reduce
        self._router = tensors.router.float()
        self._shared_gate = tensors.shared_gate
        self._experts = [
            make_mlp(torch.cat((gate_up[::2], gate_up[1::2])), down)
            for gate_up, down in zip(tensors.gate_up, tensors.down, strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """See Branch. The contributions to a token are added in the order of its experts' numbers."""
        weights, chosen = choose_experts(self._spec, functional.linear(x.float(), self._router))
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
