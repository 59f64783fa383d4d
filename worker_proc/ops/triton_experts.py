"""Experts on our kernels, for CUDA: every launch has a size that follows from the number of rows alone, so that a graph
holds it whatever the router says."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.experts import ExpertsSpec
from worker_proc.ops.interface import AllReduce, Branch
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized
from worker_proc.weights.tensors import ExpertTensors

# Contributions of up to so many rows are kept in float32: they stay in the L2 cache.
_FEW_ROWS = 64


class TritonExperts:
    """See Ops.experts. Args: the modules kernels.expert_routing, expert_linear, expert_tiles and mxfp4; then as there.
    Weights in MXFP4 stay as they are, but for scales that the kernels do not take, which no published model has."""

    def __init__(
        self,
        kernels: tuple[ModuleType, ModuleType, ModuleType, ModuleType],
        spec: ExpertsSpec,
        tensors: ExpertTensors,
        shared: Branch | None,
        all_reduce: AllReduce | None,
    ) -> None:
        self._routing, self._linear, self._tiles, self._mxfp4 = kernels
        self._spec, self._tensors, self._shared, self._all_reduce = spec, tensors, shared, all_reduce
        stacks = tensors.gate_up, tensors.down
        self._is_mxfp4 = all(map(self._is_kept, stacks))
        self._gate_up, self._down = (self._packed(stack, tensors.router.dtype) for stack in stacks)
        self._gating = self._linear.Gating(*spec.gating)

    def __call__(self, x: Tensor) -> Tensor:
        """See Branch."""
        y = self._parts(x).sum(0, dtype=torch.float32).to(x.dtype)
        return y if self._all_reduce is None else self._all_reduce(y)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return residual + self(x)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return what each choice adds [n, T, hidden], for kernels.norm.add_rms_norm, which adds them in order."""
        return self._parts(x) if self._all_reduce is None else self(x)

    def _parts(self, x: Tensor) -> Tensor:
        spec, tensors, rows = self._spec, self._tensors, x.shape[0]
        tiles = self._tiles.expert_tiles(rows, spec.top_k, spec.count, x.dtype, self._is_mxfp4)
        scores = self._routing.router_scores(x, tensors.router)
        routing = self._routing.route(
            scores, spec.top_k, tiles.block_m, normalised=spec.is_normalised, bias=tensors.router_bias
        )
        hidden = self._linear.experts_hidden(
            x, self._gate_up, routing, tiles.hidden, tensors.gate_up_bias, self._gating
        )
        dtype, extra = torch.float32 if rows <= _FEW_ROWS else x.dtype, 0 if self._shared is None else 1
        parts: Tensor = self._linear.experts_down(
            hidden, self._down, routing, tiles.down, dtype, extra, tensors.down_bias
        )
        if self._shared is not None:
            shared, gate = self._shared(x), tensors.shared_gate
            parts[-1] = shared if gate is None else shared * functional.linear(x, gate).sigmoid_()
        return parts

    def _is_kept(self, weight: Weight) -> bool:
        if not isinstance(weight, QuantizedWeight) or weight.kind != "mxfp4":
            return False
        return int(weight.scales["scale"].max()) <= int(self._mxfp4.LARGEST_SCALE)

    def _packed(self, weight: Weight, dtype: torch.dtype) -> Any:
        """Return the matrices as the kernels take them."""
        count = self._spec.count
        if isinstance(weight, QuantizedWeight) and self._is_mxfp4:
            return self._mxfp4.Mxfp4(*(one.view(count, -1, one.shape[1]) for one in weight.tensors.values()))
        return weight if isinstance(weight, Tensor) else dequantized(weight, dtype).view(count, -1, weight.shape[1])
