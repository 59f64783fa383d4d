"""Packed linears: plain ones for any device, and oneDNN's prepacked, fused ones for the CPU.

The prepacked ones use private operators of torch, so `can_prepack` tries them once and compares their results; where
that fails, the plain ones are used.
"""

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.families import Activation
from worker_proc.ops.interface import AllReduce


def activated(gate: Tensor, activation: Activation) -> Tensor:
    """Return the activation of the gate's half, elementwise."""
    return functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")


class PlainLinear:
    """torch's own linear. Args: weight [out, in], bias [out], all_reduce over ranks."""

    def __init__(self, weight: Tensor, bias: Tensor | None, all_reduce: AllReduce | None) -> None:
        self._weight = weight
        self._bias = bias
        self._all_reduce = all_reduce

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b, summed over ranks where the linear is split by rows."""
        y = functional.linear(x, self._weight, self._bias)
        return y if self._all_reduce is None else self._all_reduce(y)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + x W^T + b."""
        return residual + self(x)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T; for unsharded weights without bias."""
        torch.mm(x, self._weight.t(), out=out)


class PlainMlp:
    """Gated MLP of one fused and one plain linear; see Branch."""

    def __init__(
        self, gate_up: Tensor, down: Tensor, all_reduce: AllReduce | None, activation: Activation = "silu"
    ) -> None:
        self._gate_up, self._activation = gate_up, activation
        self._down = PlainLinear(down, None, all_reduce)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (silu(x G^T) * (x U^T)) D^T."""
        return self._down(self._hidden(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return self._down.add(self._hidden(x), residual)

    def _hidden(self, x: Tensor) -> Tensor:
        gate, up = functional.linear(x, self._gate_up).chunk(2, dim=-1)
        return activated(gate, self._activation) * up


class PackedLinear:
    """oneDNN's prepacked linear for the CPU, with the residual add in its epilogue.

    In fp32 a row's bits do not depend on the number of rows, as long as there are two: a single row takes another code
    path in oneDNN, so it is computed twice. This makes a replay after a crash exact in fp32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, all_reduce: AllReduce | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias
        self._all_reduce = all_reduce
        self._needs_two_rows = weight.dtype == torch.float32
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self._run_binary = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        """Return x W^T + b, summed over ranks where the linear is split by rows."""
        y = self.unary(x, "none")
        return y if self._all_reduce is None else self._all_reduce(y)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + x W^T + b."""
        return residual + self(x) if self._all_reduce is not None else self.binary(x, residual, "add")

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` with x W^T."""
        out.copy_(self(x))

    def unary(self, x: Tensor, epilogue: str) -> Tensor:
        """Return epilogue(x W^T + b)."""
        if self._needs_two_rows and x.shape[0] == 1:
            return self.unary(x.repeat(2, 1), epilogue)[:1]
        y: Tensor = self._run(x, self._weight, self._bias, epilogue, [], "")
        return y

    def binary(self, x: Tensor, other: Tensor, epilogue: str) -> Tensor:
        """Return (x W^T + b) combined with `other` by the epilogue add or mul."""
        if self._needs_two_rows and x.shape[0] == 1:
            return self.binary(x.repeat(2, 1), other.repeat(2, 1), epilogue)[:1]
        y: Tensor = self._run_binary(x, other, self._weight, self._bias, epilogue)
        return y


class PackedMlp:
    """Gated MLP of three prepacked linears: a silu in the gate's epilogue, the product in up's; see Branch."""

    def __init__(
        self, gate_up: Tensor, down: Tensor, all_reduce: AllReduce | None, activation: Activation = "silu"
    ) -> None:
        self._activation = activation
        gate, up = gate_up.chunk(2)
        self._gate = PackedLinear(gate, None, None)
        self._up = PackedLinear(up, None, None)
        self._down = PackedLinear(down, None, all_reduce)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (silu(x G^T) * (x U^T)) D^T."""
        return self._down(self._hidden(x))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """See Branch."""
        return self._down.add(self._hidden(x), residual)

    def _hidden(self, x: Tensor) -> Tensor:
        if self._activation == "silu":
            return self._up.binary(x, self._gate.unary(x, "swish"), "mul")
        return self._up.binary(x, activated(self._gate(x), self._activation), "mul")


def can_prepack(dtype: torch.dtype) -> bool:
    """Return whether this torch build and CPU run the prepacked linears correctly in `dtype`."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(32, 64, generator=generator).to(dtype)
    x, other = torch.randn(3, 64, generator=generator).to(dtype), torch.randn(3, 32, generator=generator).to(dtype)
    plain = functional.linear(x.float(), weight.float())
    try:
        packed = PackedLinear(weight, None, None)
        found = [packed(x), packed.unary(x, "swish"), packed.binary(x, other, "add"), packed.binary(x, other, "mul")]
    except (RuntimeError, AttributeError, TypeError):
        return False
    wanted = [plain, functional.silu(plain), plain + other.float(), plain * other.float()]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    return all(
        torch.allclose(y.float(), z, rtol=tolerance, atol=tolerance * 8) for y, z in zip(found, wanted, strict=True)
    )
