"""The tensors a decoder is made of, and which part of them a rank holds."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from worker_proc.models.spec import ModelSpec


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
class LayerTensors:
    """One layer of one rank, in the model's dtype. qkv [(H + 2 Hkv) D, hidden]: q heads, k heads, v heads;
    gate_up [2 I, hidden]: gate, then up; output [hidden, H D]; down [hidden, I]."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    output: Tensor
    output_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """A whole model of one rank. `layers` may be a generator: each layer is packed before the next one is read.
    `lm_head` None means tied to the embedding [vocab, hidden]."""

    embedding: Tensor
    layers: Iterable[LayerTensors]
    final_norm: Tensor
    lm_head: Tensor | None


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a checkpoint of `spec` must hold."""
    hidden, width = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.is_tied:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, q_size),
        "mlp.gate_proj.weight": (width, hidden),
        "mlp.up_proj.weight": (width, hidden),
        "mlp.down_proj.weight": (hidden, width),
    }
    if spec.has_qkv_bias:
        layer.update({f"self_attn.{n}_proj.bias": (s,) for n, s in (("q", q_size), ("k", kv_size), ("v", kv_size))})
    if spec.has_output_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if spec.has_qk_norm:
        layer.update({f"self_attn.{n}_norm.weight": (spec.head_dim,) for n in "qk"})
    for i in range(spec.num_layers):
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes
