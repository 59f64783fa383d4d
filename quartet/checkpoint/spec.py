"""The shape of a model as described by its config.json, checked; unsupported settings are refused by name.

Read at start-up, which refuses, and by the worker, which builds the model. Imports nothing heavy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quartet.checkpoint.attention_kinds import AttentionKind, attention_kinds, window_limit
from quartet.checkpoint.config_fields import NEUTRAL, number, refuse_unserved, size, switch
from quartet.checkpoint.experts import COUNTS, ExpertsSpec, check_quantised, expert_shapes, experts_spec
from quartet.checkpoint.families import ACTIVATIONS, FAMILIES, Activation, Family, Norms, QkNorm, refusal
from quartet.checkpoint.linear_attention import LinearSpec, linear_layers, linear_spec
from quartet.checkpoint.quantization import Quantization
from quartet.checkpoint.quantization_config import quantization_of
from quartet.checkpoint.rotary import extended_context
from quartet.checkpoint.text_part import read_config
from quartet.wire.errors import ModelError


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of one decoder-only transformer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Of dense MLPs; 0 if no layer has one."""
    num_layers: int
    attention: tuple[AttentionKind, ...]
    """The kind of each layer."""
    norm_eps: float
    has_qkv_bias: bool
    has_output_bias: bool
    qk_norm: QkNorm
    is_tied: bool
    stored_dtype: str
    """As config.json names it; float32 if it does not."""
    is_fused: bool = False
    """See Family."""
    norms: Norms = "before"
    activation: Activation = "silu"
    attention_scale: float = 0.0
    """Factor on q K^T; 0 stands for 1 / sqrt(head_dim)."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Factor on what attention and MLP add to the residual."""
    logits_divisor: float = 1.0
    attention_softcap: float = 0.0
    """Scores are squashed to less than this; 0 for none."""
    final_softcap: float = 0.0
    """Logits are squashed to less than this; 0 for none."""
    has_sinks: bool = False
    """See Family."""
    quantization: Quantization | None = None
    """How the worker holds the linears; None: as plain numbers."""
    experts: ExpertsSpec | None = None
    has_centred_norms: bool = False
    """See Family."""
    has_value_norm: bool = False
    """See Family."""
    has_layer_scales: bool = False
    """See Family."""
    is_gated: bool = False
    """The output of attention is multiplied by the sigmoid of a gate. In a checkpoint, q_proj holds of each head the
    rows of q, then those of its gate."""
    linear: LinearSpec | None = None
    linear_layers: frozenset[int] = frozenset()
    """Layers with linear attention, whose sizes are `linear`."""

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """The kinds of attention that layers have."""
        return tuple(dict.fromkeys(self.attention))

    @property
    def page_groups(self) -> tuple[int, ...]:
        """The window of each group of layers that keeps pages of its own, 0 for none; the layers that see most first.

        Pages of tokens that no row sees any more serve others in every group but the first."""
        seen = {kind.window for layer, kind in enumerate(self.attention) if layer not in self.linear_layers}
        return tuple(sorted(seen, key=lambda window: (window > 0, -window))) or (0,)

    def layers_of(self, group: int) -> tuple[AttentionKind, ...]:
        """Return the kinds of the layers that keep their keys and values in the pages of a group."""
        window, layers = self.page_groups[group], enumerate(self.attention)
        return tuple(kind for layer, kind in layers if kind.window == window and layer not in self.linear_layers)

    @property
    def query_scale(self) -> float:
        """Factor on q K^T."""
        return self.attention_scale or float(self.attention[0].heads.head_dim ** -0.5)

    def experts_of(self, layer: int) -> ExpertsSpec | None:
        """Return the experts of the layer, or None if it has a dense MLP instead."""
        return self.experts if self.experts is not None and layer in self.experts.layers else None

    def mlp_width(self, layer: int) -> int:
        """Return the width of the layer's dense MLP: the shared expert, 0 if there is none, where it has experts."""
        experts = self.experts_of(layer)
        return self.intermediate_size if experts is None else experts.shared_width

    def active_width(self, layer: int) -> int:
        """Return how wide a dense MLP with as many weights as one token uses in this layer would be."""
        experts = self.experts_of(layer)
        return self.intermediate_size if experts is None else experts.active_width

    def step_numbers(self, layer: int) -> int:
        """Return the most numbers that the layer's MLP keeps for a token: its halves, and what each expert returns."""
        experts = self.experts_of(layer)
        return 3 * self.active_width(layer) + (0 if experts is None else experts.top_k * self.hidden_size)


_NORM_NAMES: dict[Norms, dict[str, str]] = {
    "before": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "after": {"after_attention": "post_attention_layernorm", "after_mlp": "post_feedforward_layernorm"},
    "both": {
        "attention_norm": "input_layernorm",
        "after_attention": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
    },
}


def read_spec(folder: Path, context_length: int, quantization: str = "auto") -> ModelSpec:
    """Return the spec of the model in `folder`, to be run with at most `context_length` tokens and --quantization.

    Raises ModelError in one line for a missing or malformed file and for unsupported settings, ConfigError for a
    quantisation that contradicts the model's."""
    config = read_config(folder)
    if not config:
        raise ModelError(f"{folder / 'config.json'} cannot be read: it is missing or empty")
    return parse_spec(config, context_length, quantization)


def parse_spec(config: dict[str, Any], context_length: int, quantization: str = "auto") -> ModelSpec:
    """Return the spec in a parsed config.json; raises as read_spec does."""
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in FAMILIES:
        raise ModelError(refusal(str(architecture)))
    family = FAMILIES[architecture]
    honoured = family.honoured if family.experts is None else (*family.honoured, *COUNTS)
    neutral = NEUTRAL | dict.fromkeys(("hidden_act", "hidden_activation"), ACTIVATIONS[family.activation])
    config = family.completed(config)
    refuse_unserved(config, {key: value for key, value in neutral.items() if key not in honoured})
    _check_window(config, context_length)
    has_bias = switch(config, "attention_bias")
    experts = None if family.experts is None else experts_spec(config, family.experts, family.honoured)
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=size(config, "vocab_size"),
        hidden_size=size(config, "hidden_size"),
        intermediate_size=size(config, "intermediate_size") if experts is None or experts.has_dense_layers else 0,
        num_layers=size(config, "num_hidden_layers"),
        attention=attention_kinds(config, family, context_length),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        has_qkv_bias=family.has_qkv_bias or switch(config, "qkv_bias", has_bias),
        has_output_bias=bool(family.output_bias) and switch(config, family.output_bias),
        qk_norm=family.qk_norm,
        is_tied=switch(config, "tie_word_embeddings"),
        stored_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        is_fused=family.is_fused,
        norms=family.norms,
        activation=family.activation,
        has_sinks=family.has_sinks,
        **_scales(config, family),
        quantization=quantization_of(config, quantization),
        experts=experts,
        has_centred_norms=family.has_centred_norms,
        has_value_norm=family.has_value_norm,
        has_layer_scales=family.has_layer_scales,
        is_gated=family.is_hybrid and switch(config, "attn_output_gate", True),
        linear=linear_spec(config) if family.is_hybrid else None,
        linear_layers=linear_layers(config) if family.is_hybrid else frozenset(),
    )
    check_quantised(spec.experts, spec.quantization)
    return spec


def _scales(config: dict[str, Any], family: Family) -> dict[str, float]:
    fields = {
        "attention_scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logits_divisor": "logits_scaling",
    }
    scales = {name: number(config, key, 1.0) for name, key in fields.items() if key in family.honoured}
    caps = {"attention_softcap": "attn_logit_softcapping", "final_softcap": "final_logit_softcapping"}
    scales |= {name: number(config, key) for name, key in caps.items() if key in family.honoured and config.get(key)}
    if "query_pre_attn_scalar" in family.honoured:
        scales["attention_scale"] = number(config, "query_pre_attn_scalar") ** -0.5
    if not family.is_query_scaled:
        scales["attention_scale"] = 1.0
    if family.is_embedding_scaled:
        scales["embedding_scale"] = size(config, "hidden_size") ** 0.5
    return scales


def _check_window(config: dict[str, Any], context_length: int) -> None:
    window = window_limit(config)
    if window is not None and window < context_length:
        raise ModelError(
            f"sliding window attention ({window} tokens) is not supported beyond its window for this architecture; "
            f"give --context-length {window} or less instead of {context_length}"
        )


def context_limit(config: dict[str, Any]) -> int:
    """Return how many tokens the model may see at once: those of its window, if no layer sees beyond it here."""
    family = FAMILIES.get((config.get("architectures") or [""])[0], Family(""))
    config = family.completed(config)
    length = extended_context(config, size(config, "max_position_embeddings"), family.honoured)
    return min(length, window_limit(config) or length)


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a checkpoint of `spec` must hold, if none is quantised."""
    hidden = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.is_tied:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    norms = {f"{name}.weight": (hidden,) for name in norm_names(spec).values()}
    linear = {} if spec.linear is None else spec.linear.shapes(hidden)
    mlp, experts = _mlp_shapes(spec), {} if spec.experts is None else expert_shapes(spec.experts, hidden)
    for i in range(spec.num_layers):
        layer = norms | (linear if i in spec.linear_layers else _attention_shapes(spec, spec.attention[i]))
        layer |= mlp if spec.experts_of(i) is None else experts
        if spec.has_layer_scales:
            layer["layer_scalar"] = (1,)
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def norm_names(spec: ModelSpec) -> dict[str, str]:
    """Return the norms of a layer in a checkpoint, by the field of LayerTensors."""
    return _NORM_NAMES[spec.norms]


def _attention_shapes(spec: ModelSpec, kind: AttentionKind) -> dict[str, tuple[int, ...]]:
    hidden, heads, q_size, kv_size = spec.hidden_size, kind.heads, kind.heads.query_size, kind.heads.kv_size
    projections = {"q": q_size * (1 + spec.is_gated), "k": kv_size, **({"v": kv_size} if heads.has_values else {})}
    if spec.is_fused:
        projections = {"qkv": q_size + 2 * kv_size}
    layer: dict[str, tuple[int, ...]] = {
        f"self_attn.{n}_proj.weight": (rows, hidden) for n, rows in projections.items()
    }
    layer["self_attn.o_proj.weight"] = (hidden, q_size)
    if spec.has_qkv_bias:
        layer.update({f"self_attn.{n}_proj.bias": (rows,) for n, rows in projections.items()})
    if spec.has_output_bias:
        layer["self_attn.o_proj.bias"] = (hidden,)
    if spec.has_sinks:
        layer["self_attn.sinks"] = (heads.num_heads,)
    if spec.qk_norm != "none":
        sizes = (heads.head_dim, heads.head_dim) if spec.qk_norm == "head" else (q_size, kv_size)
        layer.update({f"self_attn.{n}_norm.weight": (rows,) for n, rows in zip("qk", sizes, strict=True)})
    return layer


def _mlp_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden, width = spec.hidden_size, spec.intermediate_size
    rows = {"gate_up": 2 * width} if spec.is_fused else {"gate": width, "up": width}
    return {"mlp.down_proj.weight": (hidden, width), **{f"mlp.{n}_proj.weight": (rows[n], hidden) for n in rows}}
