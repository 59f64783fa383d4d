"""The models that benchmarks run with random weights: one config.json each below benchmarks/models, read here alone."""

import json
from pathlib import Path
from typing import NamedTuple

from quartet.checkpoint.spec import read_spec

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "models"
TITLES = {"qwen3-0.6b": "Qwen3-0.6B", "llama-3.1-8b": "Llama-3.1-8B"}
MODELS = tuple(TITLES)
TINY_MODELS = ROOT / "tests" / "golden" / "models"
TOKENIZER = TINY_MODELS / "qwen3"
"""A tokenizer with text for 512 ids, for models that have none."""


class Dimensions(NamedTuple):
    """The sizes of a model's linears."""

    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocab: int


class Experts(NamedTuple):
    """The sizes of a model's experts, and whether their weights are in MXFP4."""

    hidden: int
    width: int
    count: int
    top_k: int
    is_mxfp4: bool


def experts(model: str) -> Experts:
    """Return the sizes of the experts of a model below benchmarks/models that has some."""
    spec = read_spec(FOLDER / model, 4096)
    if spec.experts is None:
        raise ValueError(f"{model} has no experts")
    sizes = spec.hidden_size, spec.experts.width, spec.experts.count, spec.experts.top_k
    return Experts(*sizes, is_mxfp4=spec.quantization is not None)


def dimensions(model: str) -> Dimensions:
    """Return the dimensions of a model of MODELS."""
    config = json.loads((FOLDER / model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    key_value = config["num_key_value_heads"] * head_dim
    return Dimensions(hidden, config["intermediate_size"], heads * head_dim, key_value, config["vocab_size"])
