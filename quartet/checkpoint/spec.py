"""The shape of a model as described by its config.json, checked; unsupported settings are refused by name.

Read at start-up, which refuses, and by the worker, which builds the model. Imports nothing heavy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quartet.checkpoint.config_fields import NEUTRAL, number, refuse_unserved, size, switch
from quartet.checkpoint.experts import COUNTS, ExpertsSpec, expert_shapes, experts_spec
from quartet.checkpoint.families import FAMILIES, Family, QkNorm, refusal
from quartet.checkpoint.linear_attention import LinearSpec, linear_layers, linear_spec
from quartet.checkpoint.quantization import Quantization
from quartet.checkpoint.quantization_config import quantization_of
from quartet.checkpoint.rotary import RopeSpec, extended_context, rope_spec
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
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    has_qkv_bias: bool
    has_output_bias: bool
    qk_norm: QkNorm
    is_tied: bool
    stored_dtype: str
    """As config.json names it; float32 if it does not."""
    is_fused: bool = False
    """See Family."""
    has_norms_after: bool = False
    """See Family."""
    attention_scale: float = 0.0
    """Factor on q K^T; 0 stands for 1 / sqrt(head_dim)."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Factor on what attention and MLP add to the residual."""
    logits_divisor: float = 1.0
    unrotated_layers: frozenset[int] = frozenset()
    """Layers without rotary embedding."""
    quantization: Quantization | None = None
    """How the worker holds the linears; None: as plain numbers."""
    experts: ExpertsSpec | None = None
    has_centred_norms: bool = False
    """See Family."""
    is_gated: bool = False
    """The output of attention is multiplied by the sigmoid of a gate. In a checkpoint, q_proj holds of each head the
    rows of q, then those of its gate."""
    linear: LinearSpec | None = None
    linear_layers: frozenset[int] = frozenset()
    """Layers with linear attention, whose sizes are `linear`."""

    @property
    def num_attention_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.num_layers - len(self.linear_layers)

    @property
    def query_scale(self) -> float:
        """Factor on q K^T."""
        return self.attention_scale or float(self.head_dim**-0.5)

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
    refuse_unserved(config, {key: value for key, value in NEUTRAL.items() if key not in honoured})
    _check_window(config, context_length)
    config = {**family.defaults, **config}
    heads, head_dim = size(config, "num_attention_heads"), _head_dim(config)
    has_bias = switch(config, "attention_bias")
    experts = None if family.experts is None else experts_spec(config, family.experts, family.honoured)
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=size(config, "vocab_size"),
        hidden_size=size(config, "hidden_size"),
        intermediate_size=size(config, "intermediate_size") if experts is None or experts.has_dense_layers else 0,
        num_layers=size(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=size(config, "num_key_value_heads", heads),
        head_dim=head_dim,
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope=rope_spec(config, head_dim, context_length, family.honoured),
        has_qkv_bias=family.has_qkv_bias or switch(config, "qkv_bias", has_bias),
        has_output_bias=bool(family.output_bias) and switch(config, family.output_bias),
        qk_norm=family.qk_norm,
        is_tied=switch(config, "tie_word_embeddings"),
        stored_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        is_fused=family.is_fused,
        has_norms_after=family.has_norms_after,
        **_scales(config, family),
        unrotated_layers=_unrotated_layers(config, family),
        quantization=quantization_of(config, quantization),
        experts=experts,
        has_centred_norms=family.has_centred_norms,
        is_gated=family.is_hybrid and switch(config, "attn_output_gate", True),
        linear=linear_spec(config) if family.is_hybrid else None,
        linear_layers=linear_layers(config) if family.is_hybrid else frozenset(),
    )
    if spec.experts is not None and spec.quantization is not None:
        raise ModelError("experts with quantised weights are not supported; take the model in bfloat16, without FP8")
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(f"{spec.num_heads} heads are no multiple of {spec.num_kv_heads} KV heads")
    return spec


def _scales(config: dict[str, Any], family: Family) -> dict[str, float]:
    fields = {
        "attention_scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logits_divisor": "logits_scaling",
    }
    return {name: number(config, key, 1.0) for name, key in fields.items() if key in family.honoured}


def _unrotated_layers(config: dict[str, Any], family: Family) -> frozenset[int]:
    """Return the layers that no_rope_layers marks with 0, or else every no_rope_layer_interval-th."""
    if "no_rope_layers" not in family.honoured:
        return frozenset()
    layers, marks = size(config, "num_hidden_layers"), config.get("no_rope_layers")
    if marks is None:
        interval = size(config, "no_rope_layer_interval")
        return frozenset(range(interval - 1, layers, interval))
    if not isinstance(marks, list) or len(marks) < layers or any(mark not in (0, 1) for mark in marks):
        raise ModelError(f"no_rope_layers in config.json must be a 0 or 1 for each of {layers} layers")
    return frozenset(layer for layer in range(layers) if not marks[layer])


def _check_window(config: dict[str, Any], context_length: int) -> None:
    window = sliding_window(config)
    if window is not None and window < context_length:
        raise ModelError(
            f"sliding window attention ({window} tokens) is not supported beyond its window; "
            f"give --context-length {window} or less instead of {context_length}"
        )


def _head_dim(config: dict[str, Any]) -> int:
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise ModelError(
            f"hidden_size {hidden} in config.json is no multiple of {heads} heads, and there is no head_dim"
        )
    head_dim = size(config, "head_dim", hidden // heads)
    if head_dim % 2:
        raise ModelError(f"head_dim {head_dim} in config.json is odd; rotary embedding needs pairs")
    return head_dim


def context_limit(config: dict[str, Any]) -> int:
    """Return how many tokens the model may see at once.

    A model with sliding window attention is held to the window: within it, full attention is the same thing."""
    length = extended_context(config, size(config, "max_position_embeddings"))
    return min(length, sliding_window(config) or length)


def sliding_window(config: dict[str, Any]) -> int | None:
    """Return how many tokens a layer with sliding window attention sees, or None if no layer has such attention.

    What is absent is taken as transformers takes it: Mistral has a window of 4096, Qwen has it switched off.
    Raises ModelError for kinds of attention that are not supported."""
    architecture = (config.get("architectures") or [None])[0]
    is_qwen = architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
    family = FAMILIES.get(architecture, Family(""))
    defaults, served = family.defaults, {"full_attention", "sliding_attention"}
    if family.is_hybrid:
        served.add("linear_attention")
    config = {**defaults, **config}
    is_used = switch(config, "use_sliding_window", bool(defaults.get("use_sliding_window", True)))
    window = config.get("sliding_window")
    if window is not None and type(window) is not int:
        raise ModelError(f"sliding_window {window} in config.json is not supported; only a number of tokens is")
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list):
            raise ModelError(f"layer_types in config.json is no list (found {kinds!r:.80})")
        unknown = sorted({str(kind) for kind in kinds} - served)
        if unknown:
            raise ModelError(f"layer_types in config.json names {unknown[0]}, which is not supported")
        if "sliding_attention" not in kinds:
            return None
        if not is_used or not window:
            raise ModelError("layer_types in config.json names sliding_attention, but sliding_window is not set")
    elif is_qwen and size(config, "max_window_layers", 28, least=0) >= size(config, "num_hidden_layers", 32):
        # Qwen's first layers see everything; here these are all.
        return None
    return window if is_used and window is not None and window > 0 else None


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a checkpoint of `spec` must hold, if none is quantised."""
    hidden = spec.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.is_tied:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    norms = {f"{name}.weight": (hidden,) for name in norm_names(spec)}
    attention, linear = _attention_shapes(spec), {} if spec.linear is None else spec.linear.shapes(hidden)
    mlp, experts = _mlp_shapes(spec), {} if spec.experts is None else expert_shapes(spec.experts, hidden)
    for i in range(spec.num_layers):
        layer = norms | (linear if i in spec.linear_layers else attention)
        layer |= mlp if spec.experts_of(i) is None else experts
        shapes.update({f"model.layers.{i}.{name}": shape for name, shape in layer.items()})
    return shapes


def norm_names(spec: ModelSpec) -> tuple[str, str]:
    """Return the names of the norms of attention and MLP in a layer of a checkpoint."""
    if spec.has_norms_after:
        return "post_attention_layernorm", "post_feedforward_layernorm"
    return "input_layernorm", "post_attention_layernorm"


def _attention_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden, q_size, kv_size = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    projections = {"q": q_size * (1 + spec.is_gated), "k": kv_size, "v": kv_size}
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
    if spec.qk_norm != "none":
        sizes = (spec.head_dim, spec.head_dim) if spec.qk_norm == "head" else (q_size, kv_size)
        layer.update({f"self_attn.{n}_norm.weight": (rows,) for n, rows in zip("qk", sizes, strict=True)})
    return layer


def _mlp_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden, width = spec.hidden_size, spec.intermediate_size
    rows = {"gate_up": 2 * width} if spec.is_fused else {"gate": width, "up": width}
    return {"mlp.down_proj.weight": (hidden, width), **{f"mlp.{n}_proj.weight": (rows[n], hidden) for n in rows}}
