"""Linears on FP8 weights for CUDA: our own kernel on 16-bit activations for few rows, tensor cores of FP8 for many.

Few rows are bound by reading the weight, so nothing is won by rounding the activations; with many rows they are coded,
with a scale for each row, or for 128 columns of it where the weight has blocks. Devices that are not Hopper's, and
shapes that no kernel takes, dequantise the weight.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worker_proc.ops.interface import AllReduce
from worker_proc.ops.quantized import DequantizingLinear
from worker_proc.weights.quantized import QuantizedWeight


class Fp8Kernels(NamedTuple):
    """Modules of `kernels` (skinny_fp8, fp8_tiles, fp8_numbers, gemm_fp8_blocks, pdl), and activation.silu_mul."""

    skinny: ModuleType
    tiles: ModuleType
    numbers: ModuleType
    gemm: ModuleType
    pdl: ModuleType
    silu_mul: Callable[[Tensor], Tensor]


def fp8_kernels() -> Fp8Kernels:
    """Import the kernels, which needs Triton."""
    from kernels import activation, fp8_numbers, fp8_tiles, gemm_fp8_blocks, pdl, skinny_fp8

    return Fp8Kernels(skinny_fp8, fp8_tiles, fp8_numbers, gemm_fp8_blocks, pdl, activation.silu_mul)


class Fp8Linear(DequantizingLinear):
    """See Linear. Args: kernels; weight [out, in], bias [out], all_reduce over ranks."""

    def __init__(
        self, kernels: Fp8Kernels, weight: QuantizedWeight, bias: Tensor | None, all_reduce: AllReduce | None
    ) -> None:
        if weight.shape[0] % weight.group[0]:
            weight = weight.by_row()
        super().__init__(weight, bias, all_reduce)
        self._kernels, self._codes, self._scale = kernels, weight.codes, weight.scales["scale"]
        is_blocked = self._scale.shape[1] > 1
        self._can_stream = all_reduce is None and (not is_blocked or weight.group[1] == kernels.numbers.GROUP)
        self._is_blocked = is_blocked
        fits = not weight.shape[0] % 16 and not weight.shape[1] % (kernels.numbers.GROUP if is_blocked else 16)
        self._can_multiply = fits and self._can_stream and kernels.pdl.is_hopper(self._codes.device)

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        found = self._streamed("plain", x, self._bias)
        return self._product(x) if found is None else found

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return x W^T + b [T, out], or its fp32 split-K partial sums [n, T, out] for kernels.norm.add_rms_norm."""
        found = self._streamed("split_k", x, None) if self._bias is None else None
        return self(x) if found is None else found

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T; for weights without bias."""
        if self._streamed("plain", x, None, out) is None:
            out.copy_(self._product(x))

    def gated(self, x: Tensor) -> Tensor:
        """Return silu(x G^T) * (x U^T), where the weight is the gate's and up's rows."""
        tile = self._tile("gated", x)
        if tile is None:
            return self._kernels.silu_mul(self(x))
        found: Tensor = self._kernels.skinny.skinny_fp8(x, self._codes, self._scale, tile, gated=True)
        return found

    def _tile(self, form: str, x: Tensor) -> Any:
        """Return the tile of the kernel for few rows, or None where another product is used."""
        if not self._can_stream:
            return None
        return self._kernels.tiles.fp8_tile(form, self._codes, x, is_blocked=self._is_blocked)

    def _streamed(self, form: str, x: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor | None:
        tile = self._tile(form, x)
        if tile is None:
            return None
        found: Tensor = self._kernels.skinny.skinny_fp8(x, self._codes, self._scale, tile, bias, out=out)
        return found

    def _product(self, x: Tensor) -> Tensor:
        """Return x W^T + b of many rows."""
        if not self._can_multiply or x.dtype != torch.bfloat16:
            return super().__call__(x)
        codes, scale = self._kernels.numbers.quantize_rows(x, grouped=self._is_blocked)
        if self._is_blocked:
            y: Tensor = self._kernels.gemm.gemm_fp8_blocks(codes, scale, self._codes, self._scale, x.dtype)
        else:
            y = torch._scaled_mm(
                codes, self._codes.t(), scale, self._scale.view(1, -1), out_dtype=x.dtype, use_fast_accum=True
            )
        return y if self._bias is None else y + self._bias
