"""Writes tiny GGUF models, with the library that other projects use for it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Weights = dict[str, npt.NDArray[np.float32]]

LAYERS, HIDDEN, HEADS, KV_HEADS, INNER = 2, 64, 4, 2, 96
TOKENS = ["<|end|>", *"abcdefgh", "Ġ", "ab", "Ġab"]
MERGES = ["a b", "Ġ ab"]


def permute(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Order the rows of a projection as llama.cpp stores them: the two halves of each head interleaved."""
    out = np.empty_like(rows)
    size = rows.shape[0] // heads
    for head in range(heads):
        for pair in range(size // 2):
            out[head * size + 2 * pair] = rows[head * size + pair]
            out[head * size + 2 * pair + 1] = rows[head * size + size // 2 + pair]
    return out


def hf_weights(seed: int = 0) -> Weights:
    """Return random weights of a tiny Llama under their Hugging Face names."""
    draw = np.random.default_rng(seed)
    size = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (len(TOKENS), HIDDEN), "model.norm": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm": (HIDDEN,),
            at + "post_attention_layernorm": (HIDDEN,),
            at + "self_attn.q_proj": (HEADS * size, HIDDEN),
            at + "self_attn.k_proj": (KV_HEADS * size, HIDDEN),
            at + "self_attn.v_proj": (KV_HEADS * size, HIDDEN),
            at + "self_attn.o_proj": (HIDDEN, HEADS * size),
            at + "mlp.gate_proj": (INNER, HIDDEN),
            at + "mlp.up_proj": (INNER, HIDDEN),
            at + "mlp.down_proj": (HIDDEN, INNER),
        }
    return {f"{name}.weight": draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a Hugging Face tensor."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{_GGUF_NAMES[part]}.weight"
    return f"{_GGUF_NAMES[stem]}.weight"


def biases(parts: str, layers: int = LAYERS) -> Weights:
    """Return biases 0, 1, 2, ... for the projections `parts` of the first `layers` layers, under llama.cpp's names."""
    sizes = {"q": HIDDEN, "k": KV_HEADS * HIDDEN // HEADS, "v": KV_HEADS * HIDDEN // HEADS, "output": HIDDEN}
    return {
        f"blk.{layer}.attn_{part}.bias": np.arange(sizes[part], dtype=np.float32)
        for layer in range(layers)
        for part in parts.split()
    }


def write_gguf(
    path: Path,
    arch: str = "llama",
    quantised: bool = False,
    tokenizer: dict[str, Any] | None = None,
    extra: Weights | None = None,
    metadata: dict[str, Any] | None = None,
    is_big_endian: bool = False,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
) -> Weights:
    """Write a tiny model to `path`; returns its weights under their Hugging Face names.

    `metadata` adds to the keys that every file has or replaces them, `extra` likewise tensors; None leaves a key out.
    """
    weights = hf_weights()
    more = extra or (biases("q k v") if arch == "qwen2" else {})
    writer = gguf.GGUFWriter(path, arch, endianess=gguf.GGUFEndian.BIG if is_big_endian else gguf.GGUFEndian.LITTLE)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    _write_tokenizer(writer, tokenizer or {})
    _change(writer, metadata or {})
    for name, values in weights.items():
        if gguf_name(name) in more:
            continue
        stored = values
        if arch == "llama" and ".q_proj" in name:
            stored = permute(values, HEADS)
        elif arch == "llama" and ".k_proj" in name:
            stored = permute(values, KV_HEADS)
        if (quantised or kind is not gguf.GGMLQuantizationType.Q8_0) and stored.ndim == 2:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), stored)
    for name, values in more.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _change(writer: gguf.GGUFWriter, metadata: dict[str, Any]) -> None:
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    for key, value in metadata.items():
        writer.kv_data[0].pop(key, None)
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_key_value(key, value, kinds.get(type(value), gguf.GGUFValueType.STRING))


def _write_tokenizer(writer: gguf.GGUFWriter, changes: dict[str, Any]) -> None:
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    tokens = changes.get("tokens", TOKENS)
    writer.add_token_list(tokens)
    writer.add_token_types(changes.get("types", [3, *[1] * (len(tokens) - 1)]))
    if "scores" in changes:
        writer.add_token_scores(changes["scores"])
    else:
        writer.add_token_merges(changes.get("merges", MERGES))
    writer.add_bos_token_id(changes.get("bos", 0))
    writer.add_eos_token_id(changes.get("eos", 0))
    writer.add_chat_template("{{ messages[0].content }}")
