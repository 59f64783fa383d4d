"""Writes tiny model folders in Hugging Face layout, without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
Weights = dict[str, npt.NDArray[Any]]


def weights(qkv_bias: bool = False, norms: bool = False) -> Weights:
    """Return tensors of zeros for CONFIG, with biases on q, k and v or with norms of heads if that is asked for."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (100, 16), "model.norm.weight": (16,)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {at + f"{name}.weight": (16,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q", 16), ("k", 8), ("v", 8), ("o", 16)):
            shapes[at + f"self_attn.{name}_proj.weight"] = (rows, 16)
            if qkv_bias and name != "o":
                shapes[at + f"self_attn.{name}_proj.bias"] = (rows,)
        if norms:
            shapes |= {at + f"self_attn.{name}_norm.weight": (4,) for name in "qk"}
        shapes |= {at + "mlp.gate_proj.weight": (32, 16), at + "mlp.up_proj.weight": (32, 16)}
        shapes[at + "mlp.down_proj.weight"] = (16, 32)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def write_json(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def write_folder(folder: Path, tensors: Weights | None = None, **changes: Any) -> Path:
    """Write a whole folder with `changes` to CONFIG; a change to None is written as null."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder, "config.json", {**CONFIG, **changes})
    write_json(folder, "tokenizer.json", {"added_tokens": [{"id": 7, "content": "<|turn|>"}]})
    save_file(weights() if tensors is None else tensors, folder / "model.safetensors")
    return folder
