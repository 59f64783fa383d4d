"""The shape of a model as described by its config.json, checked; unsupported settings are refused by name.

Both spellings of rotary settings are read: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`.
No torch: the simulated worker and the tests of this module need none.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quartet.wire.errors import ModelError

# Architectures that always have biases on q, k and v, and those that norm q and k per head.
_QKV_BIAS = {"Qwen2ForCausalLM"}
_QK_NORM = {"Qwen3ForCausalLM"}
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. `kind`: default, linear or llama3; the last four fields belong to llama3."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


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


def read_spec(folder: Path, context_length: int) -> ModelSpec:
    """Return the spec of the model in `folder`, to be run with at most `context_length` tokens.

    Raises ModelError in one line for a missing or malformed file and for unsupported settings."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    try:
        return parse_spec(config, context_length)
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} lacks or garbles {error}") from error


def parse_spec(config: dict[str, Any], context_length: int) -> ModelSpec:
    """Return the spec in a parsed config.json; raises ModelError for unsupported settings."""
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in SUPPORTED:
        raise ModelError(f"architecture {architecture} is not supported; supported: {', '.join(SUPPORTED)}")
    _refuse_unsupported(config, context_length)
    heads = int(config["num_attention_heads"])
    has_bias = bool(config.get("attention_bias", False))
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=int(config["vocab_size"]),
        hidden_size=int(config["hidden_size"]),
        intermediate_size=int(config["intermediate_size"]),
        num_layers=int(config["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=_rope(config),
        has_qkv_bias=has_bias or architecture in _QKV_BIAS,
        has_output_bias=has_bias,
        has_qk_norm=architecture in _QK_NORM,
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )
    if spec.num_heads % spec.num_kv_heads:
        raise ModelError(f"{spec.num_heads} heads are no multiple of {spec.num_kv_heads} KV heads")
    return spec


def _refuse_unsupported(config: dict[str, Any], context_length: int) -> None:
    if config.get("quantization_config"):
        raise ModelError("quantised safetensors are not supported; take the unquantised model")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act {config['hidden_act']} is not supported; only silu is")
    if config.get("mlp_bias"):
        raise ModelError("mlp_bias is not supported")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("partial_rotary_factor is not supported")
    window = config.get("sliding_window")
    # Qwen has a separate switch, without which the window in its config has no effect.
    if window is not None and config.get("use_sliding_window", True) and window < context_length:
        raise ModelError(
            f"sliding window attention ({window} tokens) is not supported beyond its window; "
            f"give --context-length {window} or less instead of {context_length}"
        )


def _rope(config: dict[str, Any]) -> RopeSpec:
    settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(settings.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = settings.get("rope_type", settings.get("type", "default"))
    match kind:
        case "default":
            return RopeSpec(theta)
        case "linear":
            return RopeSpec(theta, kind, float(settings["factor"]))
        case "llama3":
            return RopeSpec(
                theta,
                kind,
                float(settings["factor"]),
                float(settings["low_freq_factor"]),
                float(settings["high_freq_factor"]),
                int(settings["original_max_position_embeddings"]),
            )
        case _:
            raise ModelError(f"rope scaling {kind} is not supported; default, linear and llama3 are")
