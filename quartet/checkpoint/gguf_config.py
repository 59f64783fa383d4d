"""Derives config.json from the metadata of a GGUF file."""

import math
from typing import Any

import numpy as np

from quartet.checkpoint.gguf_reader import GgufHeader
from quartet.wire.errors import ModelError

_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192


def hf_config(header: GgufHeader, rope_factors: list[float] | None) -> dict[str, Any]:
    """Return the content of config.json; `rope_factors` are the values of the tensor rope_freqs.weight, if there.

    Raises ModelError if the architecture is not supported or a key is missing.
    """
    metadata = header.metadata
    arch = metadata.get("general.architecture")
    if arch not in _ARCHITECTURES:
        raise ModelError(
            f"the GGUF file holds a model of architecture {arch!r}; supported: {', '.join(_ARCHITECTURES)}"
        )
    if metadata.get(f"{arch}.expert_count"):
        raise ModelError("the GGUF file holds a mixture of experts, which is not supported")
    try:
        config = _config(header, arch)
    except KeyError as error:
        raise ModelError(f"the GGUF file lacks {error.args[0]!r}; download it again") from error
    scaling = _rope_scaling(metadata, arch, config, rope_factors)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def _config(header: GgufHeader, arch: str) -> dict[str, Any]:
    metadata, tensors = header.metadata, header.tensors
    class_name, model_type = _ARCHITECTURES[arch]
    hidden, heads = metadata[f"{arch}.embedding_length"], metadata[f"{arch}.attention.head_count"]
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": metadata[f"{arch}.feed_forward_length"],
        "num_hidden_layers": metadata[f"{arch}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get(f"{arch}.attention.head_count_kv", heads),
        "head_dim": metadata.get(f"{arch}.attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "max_position_embeddings": metadata[f"{arch}.context_length"],
        "rms_norm_eps": _shortest(metadata[f"{arch}.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(metadata.get(f"{arch}.rope.freq_base", 10000.0)),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _eos_ids(metadata),
        "torch_dtype": "float32",
    }


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32, e.g. 1e-05 for 9.99999974e-06."""
    return float(str(np.float32(value)))


def _eos_ids(metadata: dict[str, Any]) -> int | list[int] | None:
    names = ("eos", "eot", "eom")
    found = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    ids = list(dict.fromkeys(index for index in found if index is not None))
    return ids[0] if len(ids) == 1 else ids or None


def _rope_scaling(
    metadata: dict[str, Any], arch: str, config: dict[str, Any], factors: list[float] | None
) -> dict[str, Any] | None:
    if factors is not None:
        return _llama3_scaling(factors, config)
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": _shortest(metadata.get(f"{arch}.rope.scaling.factor", 1.0))}
    original = metadata.get(f"{arch}.rope.scaling.original_context_length")
    return scaling if original is None else {**scaling, "original_max_position_embeddings": original}


def _llama3_scaling(factors: list[float], config: dict[str, Any]) -> dict[str, Any]:
    """Return the rope_scaling of Llama 3 that makes `factors` (one per rotary pair), or raise ModelError.

    The file holds only the resulting factors; the three constants behind them are the same in every Llama 3 release,
    which is verified by computing the factors again.
    """
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
