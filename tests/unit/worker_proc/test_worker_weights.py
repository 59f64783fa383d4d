"""Checkpoints: damaged and unsupported ones are refused by name; shards, tensor-parallel parts, the model's spec."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import CONTEXT, EXPERTS, LLAMA3, TINY, VARIANTS, make_weights, write_folder

from quartet.checkpoint.spec import parse_spec, read_spec
from quartet.wire.config import WorkerConfig
from quartet.wire.errors import ConfigError, ModelError
from worker_proc.kv_pool import count_pages
from worker_proc.loading import choose_device
from worker_proc.weights.dummy import dummy_tensors
from worker_proc.weights.loader import Loader
from worker_proc.weights.staging import PinnedStaging
from worker_proc.weights.tensors import ExpertTensors, LayerTensors, ModelTensors, Shard

CPU = torch.device("cpu")


def load(folder: Path, shard: Shard = Shard(), config: dict[str, Any] = TINY) -> ModelTensors:  # noqa: B008
    return Loader(folder, parse_spec(config, CONTEXT), shard, torch.float32, CPU, lambda: None).load()


def shapes(record: LayerTensors | ExpertTensors) -> dict[str, Any]:
    parts = {field: getattr(record, field) for field in record.__slots__}
    return {
        field: shapes(part) if isinstance(part, ExpertTensors) else None if part is None else part.shape
        for field, part in parts.items()
    }


def flat(tensors: ModelTensors) -> list[torch.Tensor]:
    return [
        tensors.embedding,
        tensors.final_norm,
        *(part for layer in tensors.layers for part in (layer.qkv, layer.output, layer.gate_up, layer.down)),
    ]


def test_a_sharded_checkpoint_reads_as_a_whole_one(tmp_path: Path) -> None:
    weights = make_weights(TINY)
    whole = write_folder(tmp_path / "whole", TINY, weights)
    parts = write_folder(tmp_path / "parts", TINY, weights)
    (parts / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: weights[name] for name in held}, parts / file)
    index = {"weight_map": {name: file for file, held in files.items() for name in held}}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    for one, other in zip(flat(load(whole)), flat(load(parts)), strict=True):
        assert torch.equal(one, other)
    (parts / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names b\.safetensors, which is not in the folder"):
        load(parts)


def test_fused_tensors_are_their_parts_in_order(tmp_path: Path) -> None:
    weights = make_weights(TINY)
    layer = next(iter(load(write_folder(tmp_path, TINY, weights)).layers))
    prefix = "model.layers.0."
    qkv = torch.cat([weights[f"{prefix}self_attn.{n}_proj.weight"] for n in "qkv"])
    gate_up = torch.cat([weights[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up")])
    assert torch.equal(layer.qkv, qkv)
    assert torch.equal(layer.gate_up, gate_up)


def test_two_ranks_hold_the_whole_model_between_them(tmp_path: Path) -> None:
    config = {**TINY, "attention_bias": True}
    weights = make_weights(config)
    folder = write_folder(tmp_path, config, weights)
    ranks = [next(iter(load(folder, Shard(rank, 2), config).layers)) for rank in (0, 1)]
    prefix = "model.layers.0.self_attn."
    q, k = weights[prefix + "q_proj.weight"], weights[prefix + "k_proj.weight"]
    for rank, layer in enumerate(ranks):
        assert torch.equal(layer.qkv[:16], q[rank * 16 : rank * 16 + 16])
        assert torch.equal(layer.qkv[16:24], k[rank * 8 : rank * 8 + 8])
    assert torch.equal(torch.cat([layer.output for layer in ranks], dim=1), weights[prefix + "o_proj.weight"])
    biases = [layer.output_bias for layer in ranks]
    assert torch.equal(biases[0] + biases[1], weights[prefix + "o_proj.bias"])  # type: ignore[operator]
    x = torch.randn(3, 32)
    whole = next(iter(load(folder, config=config).layers))
    parts = []
    for layer in ranks:
        gate, up = (x @ layer.gate_up.T).chunk(2, dim=-1)
        parts.append((gate * up) @ layer.down.T)
    gate, up = (x @ whole.gate_up.T).chunk(2, dim=-1)
    torch.testing.assert_close(parts[0] + parts[1], (gate * up) @ whole.down.T)
    with pytest.raises(ValueError, match="2 cannot be shared by 3 ranks"):
        Shard(0, 3).span(2)


def damage(folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(data[:-100])
        case "tail":
            path.write_bytes(data + b"x")
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_bytes(b"<html>not found</html>")
        case "json":
            path.write_bytes(data[:8] + b"[" * 20 + data[28:])
        case "gone":
            path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", r"model\.safetensors has \d+ bytes, its header asks for \d+"),
        ("tail", "header asks for"),
        ("empty", r"cut short \(0 bytes\)"),
        ("text", "no safetensors file"),
        ("json", "damaged header"),
        ("gone", r"no \*\.safetensors"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, how: str, message: str) -> None:
    folder = write_folder(tmp_path, TINY, make_weights(TINY))
    damage(folder, how)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    weights = make_weights(TINY)
    missing = dict(weights)
    del missing["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load(write_folder(tmp_path / "missing", TINY, missing))
    unexpected = {**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    with pytest.raises(ModelError, match=r"tensor model\.layers\.0\.self_attn\.q_proj\.bias is unexpected"):
        load(write_folder(tmp_path / "unexpected", TINY, unexpected))
    misshapen = {**weights, "model.norm.weight": torch.ones(31)}
    with pytest.raises(ModelError, match=r"model\.norm\.weight has shape \[31\], config\.json asks for \[32\]"):
        load(write_folder(tmp_path / "misshapen", TINY, misshapen))


def test_a_tied_model_may_repeat_its_head(tmp_path: Path) -> None:
    config = VARIANTS["llama_tied_newer_spelling"]
    weights = make_weights(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    assert load(write_folder(tmp_path, config, weights), config=config).lm_head is None


@pytest.mark.parametrize("name", [*VARIANTS, *EXPERTS])
def test_dummy_weights_have_the_shapes_of_real_ones(name: str, tmp_path: Path) -> None:
    config = (VARIANTS | EXPERTS)[name]
    real = load(write_folder(tmp_path, config, make_weights(config)), config=config)
    dummy = dummy_tensors(parse_spec(config, CONTEXT), Shard(), torch.float32, CPU)
    for one, other in zip(real.layers, dummy.layers, strict=True):
        assert shapes(one) == shapes(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported: LlamaForCausalLM"),
        ({"sliding_window": 100}, "sliding window attention .100 tokens.*--context-length 100"),
        ({"rope_scaling": {"rope_type": "axial"}}, "rope scaling axial is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quant_method .none. is not supported"),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3 KV heads"),
    ],
)
def test_unsupported_models_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_spec({**TINY, **changes}, CONTEXT)


def test_a_window_without_effect_is_accepted() -> None:
    parse_spec({**TINY, "sliding_window": CONTEXT}, CONTEXT)
    parse_spec({**TINY, "sliding_window": 8, "use_sliding_window": False}, CONTEXT)


def test_both_spellings_of_rope_are_read(tmp_path: Path) -> None:
    older = parse_spec({**TINY, "rope_theta": 7.0, "rope_scaling": LLAMA3}, CONTEXT)
    newer = parse_spec({**TINY, "rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 7.0}}, CONTEXT)
    assert older.attention == newer.attention
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is damaged"):
        read_spec(tmp_path, CONTEXT)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ModelError, match="lacks or garbles 'vocab_size'"):
        read_spec(tmp_path, CONTEXT)


def test_kv_capacity_is_a_whole_number_of_pages() -> None:
    assert count_pages(WorkerConfig(max_total_tokens=100, page_size=16), CPU, 1024) == 6
    with pytest.raises(ConfigError, match="max_total_tokens 10 is less than a page"):
        count_pages(WorkerConfig(max_total_tokens=10, page_size=16), CPU, 1024)
    most = count_pages(WorkerConfig(), CPU, 1 << 20)
    assert 1 <= most <= 2047
    with pytest.raises(ConfigError, match="no memory is left for KV"):
        count_pages(WorkerConfig(), CPU, 1 << 50)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without CUDA")
def test_a_missing_cuda_device_is_a_configuration_error() -> None:
    assert choose_device(WorkerConfig()) == CPU
    with pytest.raises(ConfigError, match="device cuda: torch finds no CUDA device"):
        choose_device(WorkerConfig(device="cuda"))


def test_a_checkpoint_read_through_pinned_staging_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, TINY, make_weights(TINY))
    plain = flat(load(folder))
    loader = Loader(folder, parse_spec(TINY, CONTEXT), Shard(), torch.float32, CPU, lambda: None)
    monkeypatch.setattr(loader, "_staging", PinnedStaging(CPU, buffer_bytes=1000))
    for one, other in zip(flat(loader.load()), plain, strict=True):
        assert torch.equal(one, other)
