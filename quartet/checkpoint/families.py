"""The table of supported families: what the decoder of each architecture is made of.

A family that differs from others by values alone is one entry here. A part that no family has yet is a field of
ModelSpec (spec.py), the tensors that it brings (spec.expected_shapes, worker_proc/weights/loader.py) and the operation
in worker_proc/models/decoder.py; docs/add-a-model.md goes through one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from quartet.checkpoint.experts import ExpertNames

QkNorm = Literal["none", "head", "projection"]
"""RMS norm of q and k before rotation: of each head, with one weight for all heads, or of all heads together."""
Norms = Literal["before", "after", "both"]
"""Where the norms of attention and MLP are: r + f(norm(r)), r + norm(f(r)), or r + norm(f(norm(r)))."""
Windows = Literal["none", "all", "last", "pattern"]
"""Layers with a window where layer_types does not name them: all, those from max_window_layers on, or all but every
sliding_window_pattern-th. With none a window bounds the context instead, since transformers has full attention."""
Activation = Literal["silu", "gelu_tanh"]
ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "silu": ("silu", "swish"),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new"),
}
"""The activation of the gated MLP, and what config.json calls it."""


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture, as config.json names it."""

    models: str
    """Published models, for the documents."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes for fields that config.json lacks, where it is not the same for all architectures."""
    honoured: tuple[str, ...] = ()
    """Fields that change the output of this family, and are refused for others."""
    has_qkv_bias: bool = False
    """Biases on q, k and v whatever `attention_bias` says."""
    output_bias: str = "attention_bias"
    """The field that says whether the output of attention has a bias; empty if it never has."""
    qk_norm: QkNorm = "none"
    is_fused: bool = False
    """Checkpoints hold q, k and v in one tensor, and gate and up in another."""
    norms: Norms = "before"
    windows: Windows = "none"
    activation: Activation = "silu"
    has_sinks: bool = False
    """Each query head has a learned score without a value in its softmax."""
    is_embedding_scaled: bool = False
    """Embeddings are multiplied by the root of hidden_size."""
    experts: ExpertNames | None = None
    """Layers have experts instead of an MLP."""
    has_centred_norms: bool = False
    """One is added to the weights of norms."""
    has_value_norm: bool = False
    """Each v head is divided by its root mean square."""
    has_layer_scales: bool = False
    """The residual is multiplied by a number of each layer at its end."""
    is_query_scaled: bool = True
    """Scores are divided by the root of head_dim, unless a field says otherwise."""
    is_hybrid: bool = False
    """Most layers have linear attention; the others have a gate on the output of theirs, in the projection of q."""

    ends: tuple[str, ...] = ()
    """Tokens that end an answer, whether a file says so or not."""

    def completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a parsed config.json with the defaults; rope_scaling is the older name of rope_parameters."""
        older = {"rope_scaling"} if config.get("rope_parameters") else set()
        return {**{key: value for key, value in self.defaults.items() if key not in older}, **config}


_QWEN3_5 = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
# A token of text has the same position in all sections of a multimodal rotary embedding.
_QWEN3_5_FIELDS = ("partial_rotary_factor", "mrope_section", "mrope_interleaved", "attn_output_gate")

_GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
_GEMMA4 = {
    **{key: value for key, value in _GEMMA.items() if key != "query_pre_attn_scalar"},
    "vocab_size": 262144,
    "num_hidden_layers": 30,
    "global_head_dim": 512,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "hidden_size_per_layer_input": 256,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    },
}
_GEMMA2_SOFTCAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}

_GPT_OSS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "attention_bias": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096},
    "sliding_window": 128,
    "sliding_window_pattern": 2,
    "swiglu_limit": 7.0,
    "swiglu_alpha": 1.702,
}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family("Llama 1 to 3.x, SmolLM2"),
    "MistralForCausalLM": Family("Mistral", {"num_key_value_heads": 8, "sliding_window": 4096}, windows="all"),
    "Qwen2ForCausalLM": Family(
        "Qwen2, Qwen2.5",
        {"num_key_value_heads": 32, "sliding_window": 4096, "use_sliding_window": False},
        has_qkv_bias=True,
        output_bias="",
        windows="last",
    ),
    "Qwen3ForCausalLM": Family(
        "Qwen3 (dense)",
        {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "use_sliding_window": False},
        qk_norm="head",
        windows="last",
    ),
    "Phi3ForCausalLM": Family(
        "Phi-3, Phi-3.5, Phi-4, Phi-4-mini (text)",
        {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        ("partial_rotary_factor",),
        is_fused=True,
        windows="all",
    ),
    "GraniteForCausalLM": Family(
        "Granite 3.x (dense)",
        {"attention_multiplier": 1.0},
        ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    ),
    "Olmo2ForCausalLM": Family("OLMo 2", {"rms_norm_eps": 1e-5}, qk_norm="projection", norms="after"),
    "SmolLM3ForCausalLM": Family(
        "SmolLM3",
        {
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "no_rope_layer_interval": 4,
        },
        ("no_rope_layers", "no_rope_layer_interval"),
    ),
    "Gemma2ForCausalLM": Family(
        "Gemma 2",
        {**_GEMMA, "max_position_embeddings": 8192, "sliding_window_pattern": 2, **_GEMMA2_SOFTCAPS},
        ("query_pre_attn_scalar", *_GEMMA2_SOFTCAPS),
        norms="both",
        windows="pattern",
        activation="gelu_tanh",
        is_embedding_scaled=True,
        has_centred_norms=True,
    ),
    "Gemma3ForCausalLM": Family(
        "Gemma 3 (text)",
        {**_GEMMA, "vocab_size": 262208, "rope_theta": 1000000.0, "sliding_window_pattern": 6},
        ("query_pre_attn_scalar", "final_logit_softcapping", "rope_local_base_freq"),
        qk_norm="head",
        norms="both",
        windows="pattern",
        activation="gelu_tanh",
        is_embedding_scaled=True,
        has_centred_norms=True,
    ),
    "Gemma4ForCausalLM": Family(
        "Gemma 4 (text, 31B)",
        _GEMMA4,
        (
            *("attention_k_eq_v", "global_head_dim", "num_global_key_value_heads", "per_layer_config"),
            *("final_logit_softcapping", "rope_local_base_freq"),
        ),
        qk_norm="head",
        norms="both",
        windows="pattern",
        activation="gelu_tanh",
        is_embedding_scaled=True,
        has_value_norm=True,
        has_layer_scales=True,
        is_query_scaled=False,
    ),
    "SeedOssForCausalLM": Family(
        "Seed-OSS",
        {"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True},
        ("attention_out_bias",),
        output_bias="attention_out_bias",
    ),
    "Qwen3MoeForCausalLM": Family(
        "Qwen3 (mixture of experts), Qwen3-Coder",
        {"num_key_value_heads": 4, "sliding_window": 4096, "use_sliding_window": False},
        ("mlp_only_layers", "decoder_sparse_step"),
        qk_norm="head",
        experts=ExpertNames(),
    ),
    "MixtralForCausalLM": Family(
        "Mixtral",
        {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0},
        experts=ExpertNames(
            width="intermediate_size",
            normalised="",
            router="block_sparse_moe.gate",
            experts="block_sparse_moe.experts",
            gate="w1",
            up="w3",
            down="w2",
        ),
    ),
    "OlmoeForCausalLM": Family(
        "OLMoE",
        {"rms_norm_eps": 1e-5},
        qk_norm="projection",
        experts=ExpertNames(width="intermediate_size"),
    ),
    "Qwen2MoeForCausalLM": Family(
        "Qwen1.5-MoE, Qwen2 (mixture of experts)",
        {"num_key_value_heads": 16, "sliding_window": 4096, "use_sliding_window": False, "qkv_bias": True},
        ("mlp_only_layers", "decoder_sparse_step"),
        output_bias="",
        experts=ExpertNames(shared_width="shared_expert_intermediate_size"),
    ),
    "Qwen3_5ForCausalLM": Family(
        "Qwen3.5, Qwen3.6, Qwen3.8 (dense)",
        _QWEN3_5,
        _QWEN3_5_FIELDS,
        qk_norm="head",
        has_centred_norms=True,
        is_hybrid=True,
    ),
    "Qwen3_5MoeForCausalLM": Family(
        "Qwen3.5, Qwen3.6, Qwen3.8 (mixture of experts)",
        {**_QWEN3_5, "num_key_value_heads": 2},
        _QWEN3_5_FIELDS,
        qk_norm="head",
        experts=ExpertNames(normalised="", shared_width="shared_expert_intermediate_size"),
        has_centred_norms=True,
        is_hybrid=True,
    ),
    "GptOssForCausalLM": Family(
        "gpt-oss",
        _GPT_OSS,
        ("swiglu_limit", "swiglu_alpha"),
        windows="pattern",
        has_sinks=True,
        ends=("<|return|>", "<|call|>"),
        experts=ExpertNames(
            width="intermediate_size",
            normalised="",
            router="mlp.router",
            gate="gate_up_proj",
            is_stacked=True,
        ),
    ),
}

SUPPORTED_ARCHITECTURES = tuple(FAMILIES)
"""Architectures, as config.json names them, that the model worker can run."""


def refusal(name: str) -> str:
    """Return what to say of an architecture that is not in the table, with the nearest one that is."""
    supported = ", ".join(SUPPORTED_ARCHITECTURES)
    base = {ours: ours.removesuffix("ForCausalLM") for ours in SUPPORTED_ARCHITECTURES}
    near = [ours for ours in base if name.lower().startswith(base[ours].rstrip("0123456789").lower())]
    near.sort(key=lambda ours: not name.startswith(base[ours]))
    return f"architecture {name} is not supported; supported: {supported}" + "".join(
        f"; the nearest is {ours}" for ours in near[:1]
    )
