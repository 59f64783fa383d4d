"""Packs linears for CUDA: plain weights, FP8 and integers each have their kernels."""

import torch
from torch import Tensor

from quartet.checkpoint.families import Activation
from quartet.checkpoint.quantization import is_kept_on
from worker_proc.ops.fp8_linear import Fp8Linear, fp8_kernels
from worker_proc.ops.integer_linear import IntegerKernels, IntegerLinear
from worker_proc.ops.interface import AllReduce, Branch, Linear
from worker_proc.ops.quantized import QuantizedMlp
from worker_proc.ops.skinny import SkinnyLinear, SkinnyMlp
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized


class TritonLinears:
    """The part of Ops that packs linears. Args: the model's dtype. Imports the kernels, which needs Triton."""

    def __init__(self, dtype: torch.dtype) -> None:
        from kernels import activation, integer_linear, skinny_linear, skinny_tiles

        self._dtype = dtype
        self._silu_mul, self._gelu_mul = activation.silu_mul, activation.gelu_mul
        self._skinny = skinny_linear.skinny_linear, skinny_tiles
        self._fp8 = fp8_kernels()
        self._integers = IntegerKernels(integer_linear, activation.silu_mul)

    def loaded(self, weight: Weight) -> Weight:
        """See Ops.loaded."""
        is_kept = isinstance(weight, QuantizedWeight) and is_kept_on(weight.kind, is_cuda=True)
        return weight if is_kept else dequantized(weight, self._dtype)

    def linear(self, weight: Weight, bias: Tensor | None, all_reduce: AllReduce | None) -> Linear:
        """See Ops.linear."""
        weight = self.loaded(weight)
        if isinstance(weight, Tensor):
            return SkinnyLinear(self._skinny, weight, bias, all_reduce)
        if weight.kind == "fp8":
            return Fp8Linear(self._fp8, weight, bias, all_reduce)
        return IntegerLinear(self._integers, weight, bias, all_reduce)

    def mlp(self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None, activation: Activation) -> Branch:
        """See Ops.mlp."""
        gate_up, down = self.loaded(gate_up), self.loaded(down)
        if isinstance(gate_up, QuantizedWeight) or isinstance(down, QuantizedWeight):
            return QuantizedMlp(self.linear(gate_up, None, None), self.linear(down, None, all_reduce), activation)
        is_silu = activation == "silu"
        activate = self._silu_mul if is_silu else self._gelu_mul
        return SkinnyMlp(self._skinny, activate, gate_up, down, all_reduce, is_silu)
