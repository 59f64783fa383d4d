"""Linears for CUDA that stream their weight past a few rows with our own kernel, and leave many rows to cuBLAS."""

from types import ModuleType

from torch import Tensor
from torch.nn import functional

from worker_proc.ops.interface import AllReduce
from worker_proc.ops.linear import PlainLinear


class StreamedLinear(PlainLinear):
    """See Linear. Args: kernels.skinny_linear; weight [out, in], bias [out], all_reduce over ranks."""

    def __init__(self, kernel: ModuleType, weight: Tensor, bias: Tensor | None, all_reduce: AllReduce | None) -> None:
        super().__init__(weight, bias, all_reduce)
        self._kernel = kernel
        self._can_stream = weight.dtype.itemsize == 2 and bias is None and all_reduce is None

    def parts(self, x: Tensor) -> Tensor:
        """Return x W^T + b [T, out], or fp32 parts [n, T, out] of it, for kernels.norm.add_rms_norm to add up."""
        tile = self._kernel.parts_tile(*self._weight.shape, x.shape[0]) if self._can_stream else None
        return self(x) if tile is None else self._kernel.skinny_linear(x, self._weight, tile)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T; for weights without bias that no rank shares."""
        tile = self._kernel.whole_tile(*self._weight.shape, x.shape[0]) if self._can_stream else None
        if tile is None:
            super().write(x, out)
        else:
            self._kernel.skinny_linear(x, self._weight, tile, out=out)


class StreamedMlp:
    """Gated MLP: one fused linear with its activation, in one kernel or two."""

    def __init__(
        self,
        kernel: ModuleType,
        activation: ModuleType,
        gate_up: Tensor,
        down: Tensor,
        all_reduce: AllReduce | None,
    ) -> None:
        self._kernel = kernel
        self._activation = activation
        self._gate_up = gate_up
        self.down = StreamedLinear(kernel, down, None, all_reduce)

    def hidden(self, x: Tensor) -> Tensor:
        """Return silu(x G^T) * (x U^T)."""
        width, depth = self._gate_up.shape
        tile = None
        if x.dtype.itemsize == 2:
            tile = self._kernel.gated_tile(width // 2, depth, x.shape[0])
        if tile is None:
            return self._activation.silu_mul(functional.linear(x, self._gate_up))
        return self._kernel.skinny_linear(x, self._gate_up, tile, gated=True)
