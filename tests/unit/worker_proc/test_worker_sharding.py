"""The tensors of the ranks, put together, are those of the whole model; a rank reads its own slices alone."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONTEXT, TINY, make_weights, write_folder
from torch import Tensor

from quartet.checkpoint.ranks import is_split, rank_counts
from quartet.checkpoint.spec import parse_spec
from quartet.sizing.model_bytes import page_bytes, weight_bytes
from worker_proc.weights.loader import Loader
from worker_proc.weights.tensors import LayerTensors, ModelTensors, Shard

FOUR = {**TINY, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64, "head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "llama, tied": {**FOUR, "tie_word_embeddings": True},
    "llama, biases": {**FOUR, "attention_bias": True},
    "qwen2": {**FOUR, "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {**FOUR, "architectures": ["Qwen3ForCausalLM"]},
    "phi3": {**FOUR, "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0},
    "gemma2": {
        **FOUR,
        "architectures": ["Gemma2ForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 8,
    },
}


def loader(folder: Path, config: dict[str, Any], shard: Shard) -> Loader:
    return Loader(folder, parse_spec(config, CONTEXT), shard, torch.float32, torch.device("cpu"), lambda: None)


def model_of(folder: Path, config: dict[str, Any], shard: Shard) -> ModelTensors:
    tensors = loader(folder, config, shard).load()
    return ModelTensors(tensors.embedding, [*tensors.layers], tensors.final_norm, tensors.lm_head)


def sections(rows: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    return [*rows.split(sizes)]


def together(parts: list[LayerTensors], config: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors of a whole layer, from those of the ranks."""
    count, head_dim = len(parts), config["head_dim"]
    heads, kv_heads = config["num_attention_heads"] // count, config["num_key_value_heads"] // count
    qkv = heads * head_dim, kv_heads * head_dim, kv_heads * head_dim
    width = config["intermediate_size"] // count
    whole: dict[str, Any] = {name: getattr(parts[0], name) for name in LayerTensors.__slots__}

    def rows(name: str, sizes: tuple[int, ...]) -> Tensor:
        by_rank = [sections(getattr(part, name), sizes) for part in parts]
        return torch.cat([by_rank[rank][at] for at, rank in product(range(len(sizes)), range(count))])

    whole["qkv"], whole["gate_up"] = rows("qkv", qkv), rows("gate_up", (width, width))
    if whole["qkv_bias"] is not None:
        whole["qkv_bias"] = rows("qkv_bias", qkv)
    if whole["output_bias"] is not None:
        whole["output_bias"] = sum(part.output_bias for part in parts)
    for name in ("output", "down"):
        whole[name] = torch.cat([getattr(part, name) for part in parts], dim=1)
    return whole


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_the_ranks_hold_the_model_between_them(name: str, count: int, tmp_path: Path) -> None:
    config = MODELS[name]
    folder = write_folder(tmp_path, config, make_weights(config))
    spec = parse_spec(config, CONTEXT)
    assert rank_counts(spec) == [1, 2, 4]
    whole = model_of(folder, config, Shard())
    ranks = [model_of(folder, config, Shard(rank, count)) for rank in range(count)]
    for one in ranks:
        assert torch.equal(one.embedding, whole.embedding) and torch.equal(one.final_norm, whole.final_norm)
        assert (one.lm_head is None) == (whole.lm_head is None) == spec.is_tied
    for layer, parts in zip(whole.layers, zip(*(one.layers for one in ranks), strict=True), strict=True):
        for field, tensor in together([*parts], config).items():
            expected = getattr(layer, field)
            assert (tensor is None) == (expected is None), field
            assert expected is None or torch.equal(tensor, expected), field
    held = [sum(part.nbytes for part in every_tensor(one)) for one in ranks]
    assert held == [weight_bytes(spec, 4, count)] * count
    assert page_bytes(spec, 16, 4, count) * count == page_bytes(spec, 16, 4)


def every_tensor(model: ModelTensors) -> list[Tensor]:
    parts = [model.embedding, model.final_norm, model.lm_head]
    parts += [getattr(layer, name) for layer in model.layers for name in layer.__slots__]
    return [part for part in parts if part is not None]


class Spy:
    """An open file of safetensors that notes which tensors are read as a whole."""

    def __init__(self, file: Any) -> None:
        self._file, self.read = file, set[str]()

    def get_tensor(self, name: str) -> Tensor:
        self.read.add(name)
        return self._file.get_tensor(name)

    def get_slice(self, name: str) -> Any:
        return self._file.get_slice(name)


@pytest.mark.parametrize("name", MODELS)
def test_a_rank_reads_nothing_whole_that_is_split(name: str, tmp_path: Path) -> None:
    config = MODELS[name]
    one = loader(write_folder(tmp_path, config, make_weights(config)), config, Shard(1, 2))
    files: Any = one._view.__self__  # type: ignore[attr-defined]
    ((path, file),) = files._files.items()
    files._files[path] = spy = Spy(file)
    for _ in one.load().layers:
        pass
    assert spy.read and not [read for read in spy.read if is_split(read)]
