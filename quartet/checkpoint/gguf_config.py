"""Derives config.json from the metadata of a GGUF file."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from quartet.checkpoint.config_fields import refuse_unserved
from quartet.checkpoint.gguf_architectures import ARCHITECTURES, LOCAL_BASE, ROPE_FACTORS, WINDOW_PATTERN
from quartet.checkpoint.gguf_ends import end_ids
from quartet.checkpoint.gguf_fields import NEUTRAL
from quartet.checkpoint.gguf_reader import GgufHeader
from quartet.wire.errors import ModelError

# The one Gemma 3 whose queries are not scaled by the size of a head, as llama.cpp tells it: by its layers.
_GEMMA3_27B_LAYERS = 62
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192


def hf_config(header: GgufHeader, rope_factors: list[float] | None) -> dict[str, Any]:
    """Return the content of config.json; `rope_factors` are the values of the tensor rope_freqs.weight, if there.

    Raises ModelError if the architecture is not supported, a key is missing, or a setting is not served.
    """
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"the GGUF file holds no model but an {kind}")
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise ModelError(f"the GGUF file holds a model of architecture {arch!r}; supported: {', '.join(ARCHITECTURES)}")
    fields, honoured = _Fields(header.metadata, arch), ARCHITECTURES[arch].honoured
    neutral = {f"{arch}.{key}": values for key, values in NEUTRAL.items() if key not in honoured}
    refuse_unserved(header.metadata, neutral, "the GGUF file")
    config = _config(header, arch, fields)
    if arch in _MORE:
        config |= _MORE[arch](config, fields)
    scaling = _rope_scaling(fields, config, rope_factors)
    if scaling:
        config["rope_scaling"] = scaling
    return config


class _Fields:
    """Reads the keys below the architecture's name; raises ModelError naming a key that is absent or unusable."""

    def __init__(self, metadata: dict[str, Any], arch: str) -> None:
        self._metadata = metadata
        self._arch = arch

    def count(self, key: str, default: int | None = None) -> int:
        """Return a positive whole number; a list with one entry a layer will do if all are the same."""
        value = self._value(key, default)
        if isinstance(value, list) and value:
            if any(other != value[0] for other in value):
                raise self._refusal(key, f"differs between layers ({value}), which is not supported")
            value = value[0]
        if type(value) is not int or value <= 0:
            raise self._refusal(key, f"is {value!r}, which is not usable")
        return value

    def number(self, key: str, default: float | None = None, is_zero_allowed: bool = False) -> float:
        """Return a positive finite number, or 0, as the shortest decimal that is the same float32."""
        value = self._value(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not is_number or (value == 0 and not is_zero_allowed):
            raise self._refusal(key, f"is {value!r}, which is not usable")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        return str(self._value(key, default))

    def check(self, key: str, expected: int) -> None:
        """Raise ModelError unless the key is absent or has the one value that is supported."""
        if self._value(key, expected) != expected:
            raise self._refusal(key, f"is {self._value(key)}; only {expected}, the size of a head, is supported")

    def _value(self, key: str, default: Any = None) -> Any:
        value = self._metadata.get(f"{self._arch}.{key}", default)
        if value is None:
            raise ModelError(f"the GGUF file lacks '{self._arch}.{key}'; download it again")
        return value

    def _refusal(self, key: str, what: str) -> ModelError:
        return ModelError(f"{self._arch}.{key} in the GGUF file {what}")


def _config(header: GgufHeader, arch: str, fields: _Fields) -> dict[str, Any]:
    metadata, tensors = header.metadata, header.tensors
    if "token_embd.weight" not in tensors:
        raise ModelError("the GGUF file lacks the tensor 'token_embd.weight'; download it again")
    hidden, heads = fields.count("embedding_length"), fields.count("attention.head_count")
    head_dim = fields.count("attention.key_length", hidden // heads)
    fields.check("attention.value_length", head_dim)
    fields.check("rope.dimension_count", head_dim)
    ends = end_ids(metadata)
    return {
        "architectures": [ARCHITECTURES[arch].name],
        "model_type": ARCHITECTURES[arch].model_type,
        "hidden_size": hidden,
        "intermediate_size": fields.count("feed_forward_length"),
        "num_hidden_layers": fields.count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": fields.count("context_length"),
        "sliding_window": int(fields.number("attention.sliding_window", 0, is_zero_allowed=True)) or None,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        # Biases are what the file holds; config.json alone cannot tell q, k and v from the output in Hugging Face's
        # terms, so vLLM's field is used beside it.
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "qkv_bias": any(f"blk.0.attn_{part}.bias" in tensors for part in "qkv"),
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }


def _gemma3_config(config: dict[str, Any], fields: _Fields) -> dict[str, Any]:
    """Return what config.json of a Gemma 3 has beside the fields of all. Its rope_scaling is that of the layers without
    a window, as in Hugging Face's older files; what the file leaves out is what llama.cpp takes."""
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == _GEMMA3_27B_LAYERS:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    return {
        "hidden_act": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "rope_local_base_freq": fields.number(LOCAL_BASE, 10000.0),
        "sliding_window_pattern": fields.count(WINDOW_PATTERN, 6),
    }


_MORE: dict[str, Callable[[dict[str, Any], _Fields], dict[str, Any]]] = {"gemma3": _gemma3_config}


def _rope_scaling(fields: _Fields, config: dict[str, Any], factors: list[float] | None) -> dict[str, Any] | None:
    """Return rope_scaling as llama.cpp reads it: linear unless a kind is named, by a factor of 1 unless one is."""
    kind = fields.text("rope.scaling.type", "linear")
    older = fields.number("rope.scale_linear", 0.0, is_zero_allowed=True)
    factor = fields.number("rope.scaling.factor", older, is_zero_allowed=True) or 1.0
    if kind not in ("none", "linear"):
        raise ModelError(f"rope scaling {kind} of a GGUF file is not supported; take the model's safetensors")
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "none" or (kind == "linear" and factor == 1):
        return None if factors is None else _llama3_scaling(factors, config)
    if factors is not None:
        raise ModelError(f"the GGUF file scales its rotary frequencies twice: {ROPE_FACTORS} and rope.scaling ({kind})")
    return scaling


def _llama3_scaling(factors: list[float], config: dict[str, Any]) -> dict[str, Any]:
    """Return the rope_scaling of Llama 3 that makes `factors` (one per rotary pair), or raise ModelError.

    The file holds only the resulting factors; the three constants behind them are the same in every Llama 3 release,
    which is verified by computing the factors again.
    """
    if len(factors) != config["head_dim"] // 2:
        raise ModelError(
            f"{ROPE_FACTORS} in the GGUF file has {len(factors)} factors for heads of {config['head_dim']}"
        )
    factor = round(max(factors), 3)
    low, high = _LLAMA3_ORIGINAL / _LLAMA3_LOW, _LLAMA3_ORIGINAL / _LLAMA3_HIGH
    for index, found in enumerate(factors):
        wavelength = 2 * math.pi * config["rope_theta"] ** (2 * index / config["head_dim"])
        if wavelength < high:
            expected = 1.0
        elif wavelength > low:
            expected = factor
        else:
            smooth = (_LLAMA3_ORIGINAL / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
            expected = 1 / ((1 - smooth) / factor + smooth)
        if not math.isclose(found, expected, rel_tol=1e-3):
            raise ModelError("the GGUF file scales its rotary frequencies in a way that is not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }
