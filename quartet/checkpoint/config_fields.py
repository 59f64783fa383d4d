"""What Quartet does with each field of config.json: reads it, refuses it by name, or knows that it changes nothing.

A field that is in none of the lists is logged and does not stop the start: tools that train and convert models leave
notes of their own in config.json, which transformers ignores, too. Fields that change the output of some model and
have no effect at one value are refused at any other, also where the architecture itself does not define them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from quartet.wire.errors import ModelError

_QUANTISED = ("quantization_config", "quantization", "compression_config")

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "mlp_bias": (False,),
    "bias": (False,),
    "attention_out_bias": (False,),
    "lm_head_bias": (False,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_bidirectional_attention": (False, "vision"),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "use_parallel_residual": (False,),
    "parallel_residual": (False,),
    "position_embedding_type": ("rope", "rotary", "absolute"),
    "alibi": (False,),
    "use_alibi": (False,),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rotary_percent": (1,),
    "rotary_dim": (),
    "rope_interleaved": (False,),
    "rope_interleave": (False,),
    "rope_ratio": (1,),
    "rope_local_base_freq": (),
    "no_rope_layers": (),
    "no_rope_layer_interval": (0,),
    "use_mrope": (False,),
    "attention_chunk_size": (0,),
    "attn_temperature_tuning": (False,),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attn_output_gate": (False,),
    "attention_k_eq_v": (False,),
    "global_head_dim": (),
    "num_global_key_value_heads": (),
    "per_layer_config": (),
    "num_kv_shared_layers": (0,),
    "hidden_size_per_layer_input": (0,),
    "enable_moe_block": (False,),
    "use_double_wide_mlp": (False,),
    "clip_qkv": (0,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "lm_head_multiplier": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "scale_embeddings": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "n_shared_experts": (0,),
    "mlp_only_layers": (),
    "decoder_sparse_step": (1,),
    "routed_scaling_factor": (1,),
    "swiglu_limit": (),
    "swiglu_alpha": (),
    "num_nextn_predict_layers": (0,),
    "pruned_heads": (),
    "chunk_size_feed_forward": (0,),
}
"""Fields that change the output, and their values without effect; null and empty values have none either."""

_READ = (
    *("architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "qkv_bias"),
    *("max_position_embeddings", "original_max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
    *("num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size", "norm_topk_prob"),
    *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "sliding_window_pattern"),
    *("bos_token_id", "eos_token_id"),
    *("full_attention_interval", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim"),
    *("linear_value_head_dim", "linear_conv_kernel_dim", "auto_map"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
)
# The dtype is chosen by --dtype. pretraining_tp splits matrices without changing their product. Most of the rest is
# about training, and about how transformers runs a model and what it returns beside the logits.
_WITHOUT_EFFECT = (
    *("model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "name_or_path", "pad_token_id"),
    *("use_cache", "pretraining_tp", "initializer_range", "attention_dropout", "hidden_dropout", "embd_pdrop"),
    *(
        "resid_pdrop",
        "residual_dropout",
        "attn_pdrop",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
    ),
    *("return_dict", "return_dict_in_generate", "output_scores", "torchscript", "use_bfloat16", "tf_legacy_loss"),
    *("is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder", "decoder_start_token_id", "prefix"),
    *("sep_token_id", "unk_token_id", "cls_token_id", "mask_token_id", "tokenizer_class", "task_specific_params"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "_commit_hash", "router_aux_loss_coef"),
    *("output_router_logits", "router_jitter_noise"),
    *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "_flash_attn_2_enabled"),
    *("use_flash_attn", "use_flash_attention", "base_model_tp_plan", "unsloth_version", "unsloth_fixed", "max_length"),
    *("early_stopping", "diversity_penalty", "length_penalty", "num_return_sequences", "remove_invalid_values"),
    *(
        "max_sequence_length",
        "model_max_length",
        "cache_implementation",
        "_sliding_window_pattern",
        "mamba_ssm_dtype",
        "mtp_num_hidden_layers",
    ),
    *("mtp_use_dedicated_embeddings", "experts_per_token", "initial_context_length", "vocab_size_per_layer_input"),
    "top_k_experts",
)


# What transformers applies to the output and Quartet leaves to the request, or has not; with values without effect.
_NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "do_sample": (True,),
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "stop_strings": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "bad_words_ids": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": (),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
}


def refuse_unserved(
    values: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL, source: str = "config.json"
) -> None:
    """Raise ModelError naming the first of `values` that is in `neutral` and has a value that changes the output."""
    for key in _effective(values, neutral):
        allowed = neutral[key]
        only = f"; only {' or '.join(map(str, allowed))} is" if allowed else ""
        raise ModelError(f"{key} {values[key]} is not supported{only} ({source})")


def not_applied(generation: Mapping[str, Any]) -> list[str]:
    """Return the fields of generation_config.json that would change the output and are not applied."""
    return _effective(generation, _NOT_APPLIED)


def _effective(values: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Return the keys of `neutral` that have a value with an effect; null and empty values have none."""
    present = {key: values[key] for key in neutral if values.get(key) not in (None, [], {})}
    return [key for key, value in present.items() if value not in neutral[key]]


def unknown_fields(config: Iterable[str]) -> list[str]:
    """Return the fields of config.json that are in no list, sorted."""
    return sorted(set(config) - {*_QUANTISED, *NEUTRAL, *_READ, *_WITHOUT_EFFECT, *_NOT_APPLIED})


_LARGEST = {"num_hidden_layers": 10_000, "num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16}
_LARGEST |= dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 1 << 24) | {"head_dim": 1 << 16}
_LARGEST |= dict.fromkeys(("num_experts", "num_local_experts"), 1 << 12)
_LARGEST_OTHER = 2**31 - 1
_LARGEST_NUMBER = 1e38
"""Above any model, and low enough that nothing which grows with a field takes long; the worker computes in float32."""


def size(config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """Return the whole number `key`, at least `least` and not absurd, or `default` if it is absent or null."""
    value = config.get(key) if config.get(key) is not None else default
    if type(value) is not int or not least <= value <= _LARGEST.get(key, _LARGEST_OTHER):
        raise ModelError(f"config.json lacks or garbles {key!r} (found {value!r})")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return the positive finite number `key`, or `default` if it is absent or null."""
    value = config.get(key) if config.get(key) is not None else default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST_NUMBER:
        raise ModelError(f"config.json lacks or garbles {key!r} (found {value!r})")
    return float(value)


def switch(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Return the truth value `key`, or `default` if it is absent or null."""
    value = config.get(key) if config.get(key) is not None else default
    if not isinstance(value, bool):
        raise ModelError(f"config.json lacks or garbles {key!r} (found {value!r})")
    return value
