"""Hostile model folders and GGUF files: tiny models of which one file is a seeded mutant."""

import json
import os
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.fuzz.mutants import mutate, mutate_bytes, to_json
from tests.golden.oracles import FOLDER

MODELS = FOLDER / "models"
NAMES = ("llama", "llama_tied", "mistral", "qwen2", "qwen3")
TOKENIZER = MODELS / "qwen3"
FILES = (
    *("config.json",) * 5,
    "generation_config.json",
    *("tokenizer.json",) * 3,
    *("tokenizer_config.json",) * 2,
    "special_tokens_map.json",
    "added_tokens.json",
    *("chat_template.jinja",) * 3,
    "chat_template.json",
    *("model.safetensors",) * 3,
    "model.safetensors.index.json",
)
_SMALL: dict[str, Any] = {
    "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>", "lstrip": False}},
    "added_tokens.json": {"<|im_start|>": 1, "<|im_end|>": 2, "<extra>": 512},
    "chat_template.json": {"chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}]},
    "model.safetensors.index.json": {"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors"}},
}
_DECODER = {str(i): {"content": text, "special": True} for i, text in enumerate(("<|endoftext|>", "<|im_start|>"))}
TEMPLATES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}",
    "{{ (messages | map(attribute='content') | join(' ')) ~ bos_token }}",
    "{% macro f(n) %}{{ n }}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2 ** 99 ** 99 }}{{ 'x'.center(10**12) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ sum([]) }}{{ [[1] * 100000] | sum(start=[]) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ 1" + " + 1" * 20000 + " }}",
    "{% if true %}" * 300 + "{% endif %}" * 300,
    "{% for i in range(3) %}" * 80 + "{% endfor %}" * 80,
    "{{ messages" + "[0]" * 5000 + " }}",
    "{{ '" + "a" * 10**6 + "' | wordwrap(1) | indent(60000) }}",
    "{% include 'x' %}",
    "{# " * 10000,
)


def write_folder(target: Path, case: int, seed: int = 0) -> str:
    """Make `target` a model folder in which one file is hostile; returns which."""
    draw = Random(f"{seed}:{case}")
    source = MODELS / draw.choice(NAMES)
    name = draw.choice(FILES)
    target.mkdir()
    for path in [*TOKENIZER.glob("tokenizer*.json"), *source.iterdir()]:
        if path.name != name and not (target / path.name).exists():
            os.symlink(path, target / path.name)
    if name == "model.safetensors.index.json":
        _leave_shards(target)
    (target / name).write_bytes(_content(source, name, draw))
    return f"{source.name}/{name}"


def _leave_shards(target: Path) -> None:
    """Let the index be read: it is not where there is one whole file."""
    whole = target / "model.safetensors"
    if whole.is_symlink():
        os.symlink(whole.readlink(), target / "model-00001-of-00001.safetensors")
        whole.unlink()


def _content(source: Path, name: str, draw: Random) -> bytes:
    if name.endswith(".safetensors"):
        path = source / name if (source / name).exists() else TOKENIZER / name
        return mutate_safetensors(path.read_bytes(), draw)
    if name.endswith(".jinja"):
        data = draw.choice(TEMPLATES).encode()
        return data if draw.random() < 0.6 else mutate_bytes(data, draw)
    path = next((folder / name for folder in (source, TOKENIZER) if (folder / name).exists()), None)
    value = json.loads(path.read_bytes()) if path else _SMALL[name]
    if name == "tokenizer_config.json" and draw.random() < 0.5:
        value |= {"added_tokens_decoder": _DECODER}
    if draw.random() < 0.8:
        return to_json(mutate(value, draw))
    return mutate_bytes(to_json(value), draw)


def mutate_safetensors(data: bytes, draw: Random) -> bytes:
    """Return a safetensors file with a mutated header, whose length may fit and whose data may be missing."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length], data[8 + length :]
    if draw.random() < 0.7:
        encoded = to_json(mutate(json.loads(header), draw))
        said = len(encoded) if draw.random() < 0.9 else draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(encoded) - 1))
        return struct.pack("<Q", said) + encoded + body
    return mutate_bytes(data[: 8 + length], draw) + (body if draw.random() < 0.8 else b"")


# GGUF

_TYPES = {bool: 7, int: 4, float: 6, str: 8, list: 9}


def gguf_parts() -> tuple[dict[str, Any], list[list[Any]]]:
    """Return metadata and tensors (name, dimensions, type, offset) of a tiny Llama."""
    tokens = ["<|end|>", *"abcdefgh", "Ġ", "ab", "Ġab"]
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 48,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(-i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 1)],
        "tokenizer.ggml.merges": ["a b", "Ġ ab"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages[0].content }}",
        "general.sampling.temp": 0.5,
    }
    shapes = {"token_embd": [32, len(tokens)], "output_norm": [32]}
    layer = {"attn_norm": [32], "ffn_norm": [32], "attn_q": [32, 32], "attn_k": [32, 16], "attn_v": [32, 16]}
    layer |= {"attn_output": [32, 32], "ffn_gate": [32, 48], "ffn_up": [32, 48], "ffn_down": [48, 32]}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensors.append([f"{name}.weight", shape, 0, offset])
        offset += 4 * int(np.prod(shape))
    return metadata, tensors


def write_gguf(path: Path, case: int, seed: int = 0) -> None:
    """Write a hostile GGUF file."""
    draw = Random(f"{seed}:{case}")
    metadata, tensors = gguf_parts()
    kind = draw.random()
    if draw.random() < 0.3:
        metadata["tokenizer.ggml.model"] = "llama"
    if kind < 0.65:
        changed = mutate(metadata, draw)
        metadata = changed if isinstance(changed, dict) else {"general.architecture": changed}
    elif kind < 0.8:
        changed = mutate(tensors, draw)
        tensors = changed if isinstance(changed, list) else []
    data = gguf_bytes(metadata, tensors)
    if kind >= 0.8:
        header = len(data) - 40_000
        data = mutate_bytes(data[:header], draw) + data[header:]
    path.write_bytes(data)


def gguf_bytes(metadata: dict[str, Any], tensors: list[Any]) -> bytes:
    """Return a GGUF file; what has the wrong type is written as far as that is possible."""
    keys = b"".join(_text(str(key)) + _typed(value) for key, value in metadata.items())
    infos = b"".join(_info(tensor) for tensor in tensors)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + keys + infos
    return head + bytes(-len(head) % 32) + np.linspace(-1, 1, 10_000, dtype="<f4").tobytes()


def _info(tensor: Any) -> bytes:
    name, shape, kind, offset = [*(tensor if isinstance(tensor, list) else []), "x", [32], 0, 0][:4]
    extents = shape if isinstance(shape, list) else [shape]
    data = _text(str(name)) + struct.pack("<I", len(extents))
    numbers = [_whole(extent) for extent in extents]
    return data + struct.pack(f"<{len(numbers)}Q", *numbers) + struct.pack("<IQ", _whole(kind) % 2**32, _whole(offset))


def _whole(value: Any) -> int:
    return int(value) % 2**64 if isinstance(value, int) else 7


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    kind = _TYPES.get(type(value), 8)
    if kind == 4 and not 0 <= value < 2**32:
        kind = 11 if -(2**63) <= value < 0 else 10
    return struct.pack("<I", kind) + _packed(value, kind)


def _packed(value: Any, kind: int) -> bytes:
    if kind == 9:
        kinds = {_TYPES.get(type(each), 8) for each in value}
        inner = kinds.pop() if len(kinds) == 1 else 8
        if inner == 4 and any(not 0 <= each < 2**32 for each in value):
            inner = 10
        return struct.pack("<IQ", inner, len(value)) + b"".join(_packed(each, inner) for each in value)
    if kind == 8:
        return _text(value if isinstance(value, str) else str(value))
    if kind == 6:
        return struct.pack("<f", value if abs(value) < 1e38 or value != value else float("inf"))
    if kind == 7:
        return struct.pack("<?", value)
    size = 4 if kind == 4 else 8
    return (int(value) % 2 ** (8 * size)).to_bytes(size, "little")
