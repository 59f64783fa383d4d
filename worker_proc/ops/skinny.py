"""Linears for CUDA: our own kernel, which streams the weight, for few rows; cuBLAS for many."""

from collections.abc import Callable
from types import ModuleType

from torch import Tensor
from torch.nn import functional

from worker_proc.ops.interface import AllReduce
from worker_proc.ops.linear import PlainLinear

# skinny_linear, and the module with its tiles.
SkinnyKernel = tuple[Callable[..., Tensor], ModuleType]


class SkinnyLinear(PlainLinear):
    """See Linear. Args: kernels.skinny_linear and its tiles; weight [out, in], bias [out], all_reduce over ranks."""

    def __init__(self, kernel: SkinnyKernel, weight: Tensor, bias: Tensor | None, all_reduce: AllReduce | None) -> None:
        super().__init__(weight, bias, all_reduce)
        self._run, self._tiles = kernel
        self._can_split = all_reduce is None and bias is None

    def __call__(self, x: Tensor) -> Tensor:
        """See Linear."""
        tile = self._tiles.unsplit_tile(self._weight, x.shape[0])
        if tile is None:
            return super().__call__(x)
        y = self._run(x, self._weight, tile, self._bias)
        return y if self._all_reduce is None else self._all_reduce(y)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return x W^T + b [T, out], or its fp32 split-K partial sums [n, T, out] for kernels.norm.add_rms_norm."""
        tile = self._tiles.split_k_tile(self._weight, x.shape[0]) if self._can_split else None
        return self(x) if tile is None else self._run(x, self._weight, tile)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T; for unsharded weights without bias."""
        tile = self._tiles.unsplit_tile(self._weight, x.shape[0])
        if tile is None:
            super().write(x, out)
        else:
            self._run(x, self._weight, tile, out=out)


class SkinnyMlp:
    """Gated MLP: one fused linear and its activation, in one kernel or two, and one linear back; see Branch."""

    def __init__(
        self,
        kernel: SkinnyKernel,
        activate: Callable[[Tensor], Tensor],
        gate_up: Tensor,
        down: Tensor,
        all_reduce: AllReduce | None,
        is_silu: bool,
    ) -> None:
        self._run, self._tiles = kernel
        self._activate, self._is_silu = activate, is_silu
        self._gate_up = gate_up
        self._down = SkinnyLinear(kernel, down, None, all_reduce)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (silu(x G^T) * (x U^T)) D^T."""
        return self._down(self._hidden(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return self._down.add(self._hidden(x), residual)

    def partial_sums(self, x: Tensor) -> Tensor:
        """Return the output, or its fp32 split-K partial sums; see SkinnyLinear."""
        return self._down.partial_sums(self._hidden(x))

    def _hidden(self, x: Tensor) -> Tensor:
        choose = self._tiles.gated_tile if self._is_silu else self._tiles.unsplit_tile
        tile = choose(self._gate_up, x.shape[0])
        if tile is None:
            return self._activate(functional.linear(x, self._gate_up))
        if self._is_silu:
            return self._run(x, self._gate_up, tile, gated=True)
        return self._activate(self._run(x, self._gate_up, tile))
