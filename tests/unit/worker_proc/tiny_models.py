"""Tiny random checkpoints of every supported kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quartet.checkpoint.spec import expected_shapes, parse_spec
from quartet.wire.config import ResolvedModel
from worker_proc.runner import ModelRunner

CONTEXT = 256
MakeRunner = Callable[..., ModelRunner]

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "max_position_embeddings": CONTEXT,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama3": {**TINY, "rope_scaling": LLAMA3},
    "llama_tied_newer_spelling": {
        **TINY,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "llama_linear": {**TINY, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_qkv_bias": {**TINY, "qkv_bias": True},
    "qwen2": {**TINY, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": 8},
    "qwen3": {**TINY, "architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
    "mistral": {**TINY, "architectures": ["MistralForCausalLM"], "sliding_window": None, "num_key_value_heads": 1},
}

_MOE = {**TINY, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**_MOE, "architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [1]},
    "qwen2_moe": {**_MOE, "architectures": ["Qwen2MoeForCausalLM"], "shared_expert_intermediate_size": 24},
}
"""Mixtures of experts, for which dense_decoder is no reference."""


def make_weights(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random fp32 weights for `config`, norms and biases random too, wide enough that greedy outputs vary."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(parse_spec(config, CONTEXT)).items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = 1 + 0.3 * noise if "norm" in name else noise * (0.5 if "bias" in name else 0.25)
    return weights


def write_folder(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def resolved(folder: Path, config: dict[str, Any], **changes: Any) -> ResolvedModel:
    values = {
        "folder": str(folder),
        "name": "tiny",
        "architecture": config["architectures"][0],
        "vocab_size": config["vocab_size"],
        "context_length": CONTEXT,
        "eos_token_ids": (2,),
    }
    return ResolvedModel(**{**values, **changes})
