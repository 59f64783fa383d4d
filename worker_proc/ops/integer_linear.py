"""Linears on integers of 4 and 8 bits for CUDA: our own kernel on the codes for few rows, cuBLAS on a dequantised copy
for many. Shapes that no kernel takes are dequantised by torch."""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worker_proc.ops.interface import AllReduce
from worker_proc.ops.quantized import DequantizingLinear
from worker_proc.weights.quantized import QuantizedWeight


class IntegerKernels(NamedTuple):
    """The module kernels.integer_linear, and activation.silu_mul."""

    linear: ModuleType
    silu_mul: Callable[[Tensor], Tensor]


class IntegerLinear(DequantizingLinear):
    """See Linear. Args: kernels; weight [out, in] of kind int4 or int8, bias [out], all_reduce over ranks."""

    def __init__(
        self, kernels: IntegerKernels, weight: QuantizedWeight, bias: Tensor | None, all_reduce: AllReduce | None
    ) -> None:
        super().__init__(weight, bias, all_reduce)
        self._kernels, self._codes = kernels, weight.codes.contiguous()
        scale, minimum = weight.scales["scale"], weight.scales.get("minimum")
        self._scale = _narrowed(scale.float(), torch.float16)
        self._zero = None if minimum is None else _narrowed(_zeros(scale.float(), minimum.float()), torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        found = self._streamed("plain", x, self._bias)
        y = functional.linear(x, self._dequantized(x), self._bias) if found is None else found
        return y if self._all_reduce is None else self._all_reduce(y)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return x W^T + b [T, out], or its fp32 split-K partial sums [n, T, out] for kernels.norm.add_rms_norm."""
        can_split = self._bias is None and self._all_reduce is None
        found = self._streamed("split_k", x, None) if can_split else None
        return self(x) if found is None else found

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T; for weights without bias."""
        if self._streamed("plain", x, None, out) is None:
            torch.mm(x, self._dequantized(x).t(), out=out)

    def gated(self, x: Tensor) -> Tensor:
        """Return silu(x G^T) * (x U^T), where the weight is the gate's and up's rows."""
        return self._kernels.silu_mul(self(x))

    def _streamed(self, form: str, x: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor | None:
        """Return the product over few rows, None where no kernel takes it."""
        kernels = self._kernels.linear
        tile = kernels.integer_tile(form, self._codes, self._scale.shape[1], x)
        if tile is None:
            return None
        found: Tensor = kernels.integer_linear(x, self._codes, self._scale, self._zero, tile, bias, out=out)
        return found

    def _dequantized(self, x: Tensor) -> Tensor:
        found: Tensor = self._kernels.linear.dequantize_integers(self._codes, self._scale, self._zero, x.dtype)
        return found


def _zeros(scale: Tensor, minimum: Tensor) -> Tensor:
    """Return the zeros that minimums of groups stand for; whole ones, as AWQ and GPTQ have them, are met exactly."""
    zero = -minimum / scale
    whole = zero.round()
    # The quotient of a rounded product differs from its factor by a few last places.
    return torch.where((zero - whole).abs() < 1e-5 * whole.abs().clamp_min(1), whole, zero)


def _narrowed(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in a type of 16 bits if it holds all of them exactly, else in float32."""
    narrow = numbers.to(dtype)
    return (narrow if torch.equal(narrow.float(), numbers) else numbers).contiguous()
