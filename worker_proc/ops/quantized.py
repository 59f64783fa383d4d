"""Linears on quantised weights, for any device: the weight is dequantised for each product.

A kind that a device computes faster has an entry of its own where that device's operations pack their linears.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.families import Activation
from worker_proc.ops.interface import AllReduce, Linear
from worker_proc.ops.linear import activated
from worker_proc.weights.quantized import QuantizedWeight, dequantized


class DequantizingLinear:
    """See Linear. Args: weight [out, in], bias [out], all_reduce over ranks."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, all_reduce: AllReduce | None) -> None:
        self._weight, self._bias, self._all_reduce = weight, bias, all_reduce

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b, summed over ranks where the linear is split by rows."""
        y = functional.linear(x, dequantized(self._weight, x.dtype), self._bias)
        return y if self._all_reduce is None else self._all_reduce(y)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + x W^T + b."""
        return residual + self(x)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T."""
        torch.mm(x, dequantized(self._weight, x.dtype).t(), out=out)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return x W^T + b [T, out], for kernels.norm.add_rms_norm."""
        return self(x)

    def gated(self, x: Tensor) -> Tensor:
        """Return silu(x G^T) * (x U^T), where the weight is the gate's and up's rows."""
        return _gated(self(x))


class QuantizedMlp:
    """Gated MLP of two linears, of which either may be quantised; see Branch."""

    def __init__(self, gate_up: Linear, down: Linear, activation: Activation = "silu") -> None:
        self._gate_up, self.down, self._activation = gate_up, down, activation

    def __call__(self, x: Tensor) -> Tensor:
        """Return (silu(x G^T) * (x U^T)) D^T."""
        return self.down(self._hidden(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return self.down.add(self._hidden(x), residual)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return the output [T, out], or its partial sums where the last linear makes such."""
        sums: Callable[[Tensor], Tensor] = getattr(self.down, "partial_sums", self.down)
        return sums(self._hidden(x))

    def _hidden(self, x: Tensor) -> Tensor:
        gate_up = self._gate_up
        if self._activation == "silu" and isinstance(gate_up, DequantizingLinear):
            return gate_up.gated(x)
        return _gated(gate_up(x), self._activation)


def _gated(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return activated(gate, activation).mul_(up)
