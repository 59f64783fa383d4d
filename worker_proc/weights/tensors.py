"""The tensors a decoder is made of, and which part of them a rank holds."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from worker_proc.weights.quantized import Weight

PROJECTION_ROWS = 64
"""Kernels of linears take weights of whole blocks of so many rows."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank `rank` of `size` tensor-parallel ranks: an equal share of the heads and of the MLP's width."""

    rank: int = 0
    size: int = 1

    def span(self, total: int) -> tuple[int, int]:
        """Return first and one past the last of this rank's share of `total`; raises ValueError if it is uneven."""
        if total % self.size:
            raise ValueError(f"{total} cannot be shared by {self.size} ranks")
        share = total // self.size
        return self.rank * share, (self.rank + 1) * share


@dataclass(frozen=True, slots=True)
class ExpertTensors:
    """The experts of a layer. router [E, hidden]; gate_up [E, 2 I, hidden], rows of gate and up in turn; down
    [E, hidden, I]; quantised ones have the rows of all experts in one matrix. shared_gate [1, hidden] scores how much
    of the shared expert is added. Biases [E], [E, 2 I] and [E, hidden]."""

    router: Tensor
    gate_up: Weight
    down: Weight
    shared_gate: Tensor | None
    router_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def biases(self) -> tuple[Tensor, Tensor] | None:
        """Those of the products, if there are any."""
        return None if self.gate_up_bias is None or self.down_bias is None else (self.gate_up_bias, self.down_bias)

    def expert(self, number: int) -> tuple[Weight, Weight]:
        """Return gate_up [2 I, hidden] and down [hidden, I] of one expert."""
        gate_up, down = (_matrix(one, number, len(self.router)) for one in (self.gate_up, self.down))
        return gate_up, down


def _matrix(stack: Weight, number: int, count: int) -> Weight:
    if isinstance(stack, Tensor):
        return stack[number]
    rows = stack.shape[0] // count
    return stack.rows(number * rows, (number + 1) * rows)


@dataclass(frozen=True, slots=True)
class LinearTensors:
    """Linear attention between its projections. conv [width, channels], the tap of the newest token last; decay [2, Hv]
    fp32: the rate, and what is added to the projection; norm [Dv]."""

    conv: Tensor
    decay: Tensor
    norm: Tensor


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One layer of one rank, in the model's dtype or quantised. gate_up [2 I, hidden]: gate, then up; down [hidden, I].
    Beside `experts` gate_up and down are the shared expert, or None. Norms are what is multiplied by: those before
    attention and MLP, and those of their outputs, as spec.norms says. sinks [H]. scale [1]: of the residual, at the end
    of the layer.

    A layer with attention has qkv [(H + 2 Hkv) D, hidden]: q heads, k heads, v heads unless keys are the values, and
    with gates H D more rows, one for each output; output [hidden, H D]. The dimensions of q and k are in the order of
    RopeSpec.head_order.

    One with linear attention has `linear`; qkv are the rows that LinearSpec.projections lists, and zeros up to a
    multiple of PROJECTION_ROWS; output [hidden, Hv Dv]."""

    qkv: Weight
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Weight
    output_bias: Tensor | None
    gate_up: Weight | None
    down: Weight | None
    experts: ExpertTensors | None
    linear: LinearTensors | None = None
    attention_norm: Tensor | None = None
    after_attention: Tensor | None = None
    mlp_norm: Tensor | None = None
    after_mlp: Tensor | None = None
    sinks: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """A whole model of one rank. `layers` may be a generator: each layer is packed before the next one is read.
    `lm_head` None means tied to the embedding [vocab, hidden]."""

    embedding: Weight
    layers: Iterable[LayerTensors]
    final_norm: Tensor
    lm_head: Weight | None
