"""The device operations that the model needs.

Shapes: T tokens of a batch, H query heads, Hkv KV heads, D head size, I MLP width of this rank. Activations are
[T, n] in the model's dtype. `qkv` rows are q heads, then k heads, then v heads; where Heads.has_values is not set they
end with the k heads, of which the values are made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from quartet.checkpoint.attention_kinds import Heads
from quartet.checkpoint.experts import ExpertsSpec
from quartet.checkpoint.families import Activation
from quartet.checkpoint.linear_attention import LinearSpec
from worker_proc.batch import ForwardBatch
from worker_proc.weights.quantized import Weight
from worker_proc.weights.tensors import ExpertTensors

AllReduce = Callable[[Tensor], Tensor]


class Collectives(Protocol):
    """Operations in which all ranks of a model take part, in the same order and with tensors of the same shape."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum of x over ranks; x may be overwritten."""
        ...

    def broadcast(self, x: Tensor) -> Tensor:
        """Return the x of rank 0; x may be overwritten."""
        ...


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What layers of one kind share on one rank. `cos_sin` is [positions, D] fp32 on the device: cosines, then sines;
    one row for all positions where nothing is rotated. `window`: tokens that a token sees, itself included; 0 for all
    before it. `group`: the page group that keeps their keys and values."""

    heads: Heads
    cos_sin: Tensor
    window: int = 0
    group: int = 0

    @property
    def is_rotated(self) -> bool:
        """Whether q and k are rotated by their positions."""
        return len(self.cos_sin) > 1


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The attention of one rank. `scale` is the factor on q K^T; `softcap` squashes the scores to less than itself, 0
    for none; `kinds` are those of spec.kinds. With `has_sinks` each call is given those of its layer."""

    page_size: int
    scale: float
    kinds: tuple[LayerKind, ...]
    softcap: float = 0.0
    has_sinks: bool = False

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.kinds[0].cos_sin.device


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norm of each q and k head before rotation, and of each v head if v is there; weights [D]."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    eps: float


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """What a layer with linear attention has between its projections: see LinearTensors. `eps` is of the norm."""

    conv: Tensor
    decay: Tensor
    norm: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class LinearState:
    """The states of a layer with linear attention: n rows, one a slot, then one for padding, then checkpoints.

    `window` [n, width, channels] in the model's dtype: what has gone into the convolution, that of position p in row
    p % width. `matrix` [n, Hv, Dk, Dv] fp32. A sequence at position 0 reads neither. Those of several layers have the
    layers as their first dimension."""

    window: Tensor
    matrix: Tensor


def zero_states(
    spec: LinearSpec, num_rows: int, dtype: torch.dtype, device: torch.device, *num_layers: int
) -> LinearState:
    """Return the states of one layer, or of so many, with `num_rows` rows."""
    window = (*num_layers, num_rows, spec.conv_width, spec.channels)
    matrix = (*num_layers, num_rows, spec.num_value_heads, spec.key_dim, spec.value_dim)
    return LinearState(torch.zeros(window, dtype=dtype, device=device), torch.zeros(matrix, device=device))


LayerCache = Tensor | LinearState
"""What a layer keeps of past tokens: pages of keys and values, or states."""


class Branch(Protocol):
    """What is added to the residual: attention's output linear, a gated MLP, experts."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return its output [T, out], summed over ranks."""
        ...

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return residual + its output, as a new tensor."""
        ...


class Linear(Branch, Protocol):
    """A packed weight; its output is x W^T + b."""

    def write(self, x: Tensor, out: Tensor) -> None:
        """Fill `out` [T, out] with x W^T; for the last linear, which has no bias."""
        ...


class Ops(Protocol):
    """One implementation of everything a decoder needs. Plans and packed weights are opaque to the model."""

    name: str

    def loaded(self, weight: Weight) -> Weight:
        """Return a weight as this device computes with it: dequantised, unless its codes are faster or smaller."""
        ...

    def linear(self, weight: Weight, bias: Tensor | None = None, all_reduce: AllReduce | None = None) -> Linear:
        """Pack weight [out, in]; the caller's tensor may be dropped afterwards."""
        ...

    def mlp(
        self, gate_up: Weight, down: Weight, all_reduce: AllReduce | None = None, activation: Activation = "silu"
    ) -> Branch:
        """Pack gate_up [2 I, hidden] (gate first) and down [hidden, I]: activation(x G^T) * (x U^T) times D^T."""
        ...

    def experts(
        self, spec: ExpertsSpec, tensors: ExpertTensors, shared: Branch | None, all_reduce: AllReduce | None = None
    ) -> Branch:
        """Pack the experts of a layer; `shared` is the MLP that every token takes beside them, not summed over ranks.

        A token's output depends on that token alone, up to rounding."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the norm in fp32 maths, rounded to x's dtype before it is multiplied by weight."""
        ...

    def add_norm(
        self, branch: Branch, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return (norm(r), r) with r = residual + branch(x) rounded to the model's dtype."""
        ...

    def allocate_kv(self, kinds: Sequence[int], num_pages: int, dtype: torch.dtype) -> list[Tensor]:
        """Return a zeroed cache for each of some layers, whose kinds of `shape.kinds` are given, in this
        implementation's layout; `num_pages` includes the dummy page."""
        ...

    def plan(self, batch: ForwardBatch) -> Sequence[Any]:
        """Return the attention plan of a batch for each kind of layers: what all layers of the kind share."""
        ...

    def attention(
        self, plan: Any, qkv: Tensor, kv: Tensor, norms: HeadNorms | None, sinks: Tensor | None = None
    ) -> Tensor:
        """Rotate q and k, write k and v to their pages, attend; returns [T, H * D]. May overwrite qkv.

        sinks [H]: a score of each query head without a value, in the softmax."""
        ...

    def gate(self, x: Tensor, gate: Tensor) -> Tensor:
        """Return x * sigmoid(gate), [T, n]; the rows of the gate may be a part of wider ones."""
        ...

    def allocate_states(self, num_layers: int, num_rows: int, dtype: torch.dtype) -> LinearState:
        """Return the zeroed states of so many layers, which are the first dimension; `num_rows`: see LinearState."""
        ...

    def linear_attention(self, plan: Any, projected: Tensor, state: LinearState, weights: LinearWeights) -> Tensor:
        """Convolve the projections' channels, take each token into the state of its slot in order, and return the
        gated norm of what it reads there, [T, Hv Dv]. `projected` [T, n] is in the order of LayerTensors.qkv."""
        ...
