"""Model folders with random weights, small enough to be made on the spot, in the shapes that real models have."""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from quartet.checkpoint.spec import expected_shapes, parse_spec

_SIZES = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    # Two query heads a KV head, norms on q and k, as Qwen3 0.6B has them.
    "wide_qwen3": {
        **_SIZES,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
    },
    # Four query heads a KV head, as Llama 3.1 8B has them; a vocabulary that no tile divides.
    "wide_llama": {
        **_SIZES,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 2001,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    },
}


def make_folder(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json and model.safetensors (fp32); the weights follow from the folder's name and their own.

    Matrices keep the size of what flows through them, so that attention and logits are neither flat nor saturated;
    norms and biases are random too, lest a forgotten one go unnoticed.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    spec = parse_spec(config, config["max_position_embeddings"])
    tensors = {
        name: _draw(f"{folder.name}/{name}", shape, spec.is_tied) for name, shape in expected_shapes(spec).items()
    }
    save_file(tensors, folder / "model.safetensors")


def _draw(key: str, shape: tuple[int, ...], is_tied: bool) -> torch.Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if "norm" in key:
        return 1.0 + 0.3 * noise
    if key.endswith("bias"):
        return 0.5 * noise
    if "embed_tokens" in key:
        return noise * (0.25 if is_tied else 1.0)
    scale: float = 1.5 / shape[1] ** 0.5
    return noise * scale
