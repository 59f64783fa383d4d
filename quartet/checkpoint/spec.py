"""The shape of a model as described by its config.json, checked; unsupported settings are refused by name.

Read at start-up, which refuses, and by the worker, which builds the model. Imports nothing heavy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quartet.checkpoint.config_fields import number, refuse_unserved, size, switch
from quartet.checkpoint.model_folder import read_json
from quartet.checkpoint.rotary import RopeSpec, rope_spec
from quartet.wire.config import SUPPORTED_ARCHITECTURES
from quartet.wire.errors import ModelError

# Architectures that always have biases on q, k and v, and never on the output, and those that norm q and k per head.
_QKV_BIAS = {"Qwen2ForCausalLM"}
_QK_NORM = {"Qwen3ForCausalLM"}
# What transformers takes for fields that config.json lacks, where it is not the same for all architectures.
_HEAD_DIM = {"Qwen3ForCausalLM": 128}
_KV_HEADS = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of one decoder-only transformer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    has_qkv_bias: bool
    has_output_bias: bool
    has_qk_norm: bool
    is_tied: bool
    stored_dtype: str
    """As config.json names it; float32 if it does not."""


def read_spec(folder: Path, context_length: int) -> ModelSpec:
    """Return the spec of the model in `folder`, to be run with at most `context_length` tokens.

    Raises ModelError in one line for a missing or malformed file and for unsupported settings."""
    config = read_json(folder / "config.json")
    if not config:
        raise ModelError(f"{folder / 'config.json'} cannot be read: it is missing or empty")
    return parse_spec(config, context_length)


def parse_spec(config: dict[str, Any], context_length: int) -> ModelSpec:
    """Return the spec in a parsed config.json; raises ModelError for unsupported settings."""
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        supported = ", ".join(SUPPORTED_ARCHITECTURES)
        raise ModelError(f"architecture {architecture} is not supported; supported: {supported}")
    refuse_unserved(config)
    window = sliding_window(config)
    if window is not None and window < context_length:
        raise ModelError(
            f"sliding window attention ({window} tokens) is not supported beyond its window; "
            f"give --context-length {window} or less instead of {context_length}"
        )
    heads = size(config, "num_attention_heads")
    has_bias = switch(config, "attention_bias")
    kv_default = heads if "num_key_value_heads" in config else _KV_HEADS.get(architecture, heads)
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=size(config, "vocab_size"),
        hidden_size=size(config, "hidden_size"),
        intermediate_size=size(config, "intermediate_size"),
        num_layers=size(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=size(config, "num_key_value_heads", kv_default),
        head_dim=_head_dim(config, architecture, heads),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope=rope_spec(config),
        has_qkv_bias=architecture in _QKV_BIAS or switch(config, "qkv_bias", has_bias),
        has_output_bias=has_bias and architecture not in _QKV_BIAS,
        has_qk_norm=architecture in _QK_NORM,
        is_tied=switch(config, "tie_word_embeddings"),
        stored_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
    )
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(f"{spec.num_heads} heads are no multiple of {spec.num_kv_heads} KV heads")
    return spec


def _head_dim(config: dict[str, Any], architecture: str, heads: int) -> int:
    hidden = size(config, "hidden_size")
    default = hidden // heads if "head_dim" in config else _HEAD_DIM.get(architecture, hidden // heads)
    if config.get("head_dim") is None and default == hidden // heads and hidden % heads:
        raise ModelError(
            f"hidden_size {hidden} in config.json is no multiple of {heads} heads, and there is no head_dim"
        )
    head_dim = size(config, "head_dim", default)
    if head_dim % 2:
        raise ModelError(f"head_dim {head_dim} in config.json is odd; rotary embedding needs pairs")
    return head_dim


def context_limit(config: dict[str, Any]) -> int:
    """Return how many tokens the model may see at once.

    A model with sliding window attention is held to the window: within it, full attention is the same thing."""
    length = size(config, "max_position_embeddings")
    return min(length, sliding_window(config) or length)


def sliding_window(config: dict[str, Any]) -> int | None:
    """Return how many tokens a layer with sliding window attention sees, or None if no layer has such attention.

    What is absent is taken as transformers takes it: Mistral has a window of 4096, Qwen has it switched off.
    Raises ModelError for kinds of attention that are not supported."""
    architecture = (config.get("architectures") or [None])[0]
    is_qwen = architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
    is_used = switch(config, "use_sliding_window", not is_qwen)
    window = config.get("sliding_window", 4096 if is_qwen or architecture == "MistralForCausalLM" else None)
    if window is not None and type(window) is not int:
        raise ModelError(f"sliding_window {window} in config.json is not supported; only a number of tokens is")
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list):
            raise ModelError(f"layer_types in config.json is no list (found {kinds!r:.80})")
        unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
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
