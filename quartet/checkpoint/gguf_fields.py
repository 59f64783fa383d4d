"""What Quartet does with each key below a GGUF file's architecture: reads it, refuses it, or knows it changes nothing.

The names are those of llama.cpp (`llm_kv` in its llama-arch.cpp). A key that is in none of the lists is reported and
does not stop the conversion: llama.cpp ignores it, too, and its converters add keys that older versions do not know.
"""

from typing import Any

from quartet.wire.errors import ModelError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.output_scale": (0, 1),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.key_length_mla": (0,),
    "attention.value_length_mla": (0,),
    "attention.key_length_swa": (),
    "attention.value_length_swa": (),
    "attention.sliding_window_pattern": (),
    "attn_logit_softcapping": (0,),
    "router_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "n_deepstack_layers": (0,),
    "pooling_type": (0,),
    "use_parallel_residual": (False,),
    "swin_norm": (False,),
    "full_attention_interval": (0, 1),
    "rope.dimension_sections": (),
    "rope.dimension_count_swa": (),
    "rope.freq_base_swa": (),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.alpha": (0,),
}
"""Keys that change the output, and their values without effect."""

_READ = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.sliding_window"),
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type"),
    *("rope.scaling.factor", "rope.scale_linear"),
)
# The embedding's rows say how many tokens there are. The settings of YaRN matter to YaRN alone, which is refused.
_WITHOUT_EFFECT = (
    *("vocab_size", "tensor_data_layout", "attention.layer_norm_epsilon"),
    *("attention.group_norm_epsilon", "attention.group_norm_groups", "rope.scaling.original_context_length"),
    *("rope.scaling.finetuned", "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor"),
    *("rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    *("expert_feed_forward_length", "expert_shared_feed_forward_length"),
)
_KNOWN = frozenset((*NEUTRAL, *_READ, *_WITHOUT_EFFECT))

SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
"""Recommended sampling, and what generation_config.json calls it."""
# SmolLM2's card says top_p 0.9, for weights that are not quantised. With it the bundled Q4_1 file names the capital of
# France in 12 of 24 draws, with 0.5 in 24 of 24 (docs/log.md).
_WHERE_NONE_IS: dict[str, dict[str, float]] = {"smollm2": {"temperature": 0.2, "top_p": 0.5}}
"""Sampling of chat models whose files recommend none, by general.basename in lower case."""


def recommended_sampling(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the sampling that the file recommends, else what suits its model, named as in generation_config.json."""
    if any(key in metadata for key in SAMPLING):
        return {name: metadata[key] for key, name in SAMPLING.items() if key in metadata}
    base = metadata.get("general.basename")
    is_chat = "tokenizer.chat_template" in metadata
    return _WHERE_NONE_IS.get(base.lower(), {}) if is_chat and isinstance(base, str) else {}


_LISTS: dict[str, type | tuple[type, ...]] = {"tokens": str, "scores": (int, float), "token_type": int, "merges": str}
_SINGLE = {"model": str, "pre": str, "add_bos_token": int, "add_eos_token": int, "add_space_prefix": int}
_LONGEST_TOKEN = 1024


def check_tokenizer(metadata: dict[str, Any]) -> None:
    """Raise ModelError naming the first key of the tokenizer whose value has a wrong type or length."""
    vocab_size = 0
    for name, kind in _LISTS.items():
        key = f"tokenizer.ggml.{name}"
        items = metadata.get(key, [])
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise ModelError(f"{key} in the GGUF file is no list of what it must hold; download it again")
        wrong = next((item for item in items if isinstance(item, str) and not _is_token(item)), None)
        if wrong is not None:
            raise ModelError(f"{key} in the GGUF file holds {wrong!r:.80}, which is no token; download it again")
        if name == "tokens":
            vocab_size = len(items)
        elif name != "merges" and key in metadata and len(items) != vocab_size:
            raise ModelError(f"{key} in the GGUF file has {len(items)} entries for {vocab_size} tokens")
    for name, single in _SINGLE.items():
        value = metadata.get(f"tokenizer.ggml.{name}")
        if value is not None and not isinstance(value, single):
            raise ModelError(f"tokenizer.ggml.{name} in the GGUF file is {value!r:.80}, which is not usable")


def _is_token(text: str) -> bool:
    """Say whether a text has a sensible length and was UTF-8 in the file."""
    return len(text) <= _LONGEST_TOKEN and (text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text))


def unknown_keys(metadata: dict[str, Any], arch: str) -> list[str]:
    """Return the keys that are ignored though they may mean something: of the architecture, and of sampling."""
    own, sampling = f"{arch}.", "general.sampling."
    return sorted(
        key
        for key in metadata
        if (key.startswith(own) and key.removeprefix(own) not in _KNOWN)
        or (key.startswith(sampling) and key not in SAMPLING)
    )
