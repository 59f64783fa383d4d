"""Linears on the CPU that compute from integers of 4 or 8 bits, or from the numbers themselves, by
kernels/cpu_grouped_linear.py."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu_grouped_linear import BLOCK, Arguments, Form, grouped_linear_module
from kernels.cpu_jit import CompiledFunction
from worker_proc.ops.interface import AllReduce
from worker_proc.weights.quantized import QuantizedWeight, Weight


class GroupedLinear:
    """See Linear; the weight is of integers, float32 or bfloat16. A row's bits do not depend on the number of rows, so
    that a replay after a death is exact."""

    def __init__(self, weight: Weight, bias: Tensor | None, all_reduce: AllReduce | None) -> None:
        self._rows, columns = weight.shape
        self._padding = -columns % BLOCK
        form, codes, self._scales = _integers(weight) if isinstance(weight, QuantizedWeight) else _numbers(weight)
        self._codes, self._bias, self._all_reduce = codes.contiguous(), bias, all_reduce
        minimum = self._scales.get("minimum")
        self._run = _compiled(form)
        self._arguments = Arguments(
            codes=self._codes.data_ptr(),
            scale=None if not self._scales else self._scales["scale"].data_ptr(),
            minimum=None if minimum is None else minimum.data_ptr(),
            rows=self._rows,
            blocks=(columns + self._padding) // BLOCK,
            y_stride=self._rows,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b, summed over ranks where the linear is split by rows."""
        y = self._product(x, self._bias, 0)
        return y if self._all_reduce is None else self._all_reduce(y)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + x W^T + b."""
        if self._all_reduce is not None or self._bias is not None:
            return residual + self(x)
        return self._product(x, residual.contiguous(), self._rows)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T."""
        out.copy_(self(x))

    def _product(self, x: Tensor, added: Tensor | None, added_stride: int) -> Tensor:
        """Return x W^T + added, whose rows are so many numbers apart."""
        if x.dtype != torch.float32:
            more = None if added is None else added.float()
            return self._product(x.float(), more, added_stride).to(x.dtype)
        x = functional.pad(x, (0, self._padding)) if self._padding else x.contiguous()
        tokens = x.shape[0]
        y = x.new_empty((tokens, self._rows))
        arguments, threads = self._arguments, torch.get_num_threads()
        arguments.next_part, arguments.parts = 0, threads
        arguments.x, arguments.y, arguments.tokens = x.data_ptr(), y.data_ptr(), tokens
        arguments.added, arguments.added_stride = None if added is None else added.data_ptr(), added_stride
        self._run(arguments, threads)
        return y


@cache
def _compiled(form: Form) -> CompiledFunction:
    return CompiledFunction(grouped_linear_module(form), "grouped_linear")


def _integers(weight: QuantizedWeight) -> tuple[Form, Tensor, Mapping[str, Tensor]]:
    """Return form, codes and parameters of a weight, for groups that the kernels know: larger ones repeat theirs."""
    group = min(weight.group[1], BLOCK)
    repeats = weight.group[1] // group
    scales = {name: one.float().repeat_interleave(repeats, 1).contiguous() for name, one in weight.scales.items()}
    return Form(4 if weight.kind == "int4" else 8, group, "minimum" in scales), weight.codes, scales


def _numbers(weight: Tensor) -> tuple[Form, Tensor, Mapping[str, Tensor]]:
    """Return form and codes of a weight in float32 or bfloat16, with zeros that fill up the last block."""
    missing = -weight.shape[1] % BLOCK
    return Form(8 * weight.dtype.itemsize), functional.pad(weight, (0, missing)) if missing else weight, {}
