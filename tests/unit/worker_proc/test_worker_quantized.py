"""Quantised weights: every layout of a checkpoint means what its maker meant, also cut, joined, shared and made."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from dense_decoder import dense_greedy
from step_feeder import StepFeeder
from tiny_models import CONTEXT, TINY, MakeRunner, make_weights, write_folder
from torch import Tensor

from quartet.checkpoint.quantization import Quantization, is_kept_on
from quartet.checkpoint.spec import parse_spec
from quartet.sizing.model_bytes import weight_bytes
from quartet.wire.errors import ConfigError, ModelError
from tests.support.quantized_checkpoints import LAYOUTS, checkpoint
from worker_proc.ops.linear import PlainLinear, PlainMlp
from worker_proc.ops.quantized import DequantizingLinear, QuantizedMlp
from worker_proc.weights.dummy import dummy_tensors
from worker_proc.weights.loader import Loader
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized, joined, quantized
from worker_proc.weights.shared import map_weights, share
from worker_proc.weights.tensors import ModelTensors, Shard

CPU = torch.device("cpu")
# Rows and columns that fill no block, and some that do.
WIDE: dict[str, Any] = {**TINY, "hidden_size": 160, "intermediate_size": 288, "head_dim": 32}
EVEN: dict[str, Any] = {**TINY, "hidden_size": 256, "intermediate_size": 384, "head_dim": 64, "num_key_value_heads": 4}
MODELS = {"wide": WIDE, "even": EVEN}


def load(folder: Path, config: dict[str, Any], shard: Shard = Shard(), asked: str = "auto") -> ModelTensors:  # noqa: B008
    return Loader(folder, parse_spec(config, CONTEXT, asked), shard, torch.float32, CPU, lambda: None).load()


def plain(weight: Weight) -> Tensor:
    return dequantized(weight, torch.float32)


def linears(tensors: ModelTensors) -> dict[str, Weight]:
    names = ("qkv", "output", "gate_up", "down")
    return {f"{i}.{name}": getattr(one, name) for i, one in enumerate(tensors.layers) for name in names}


def folder_of(path: Path, layout: str, model: str = "wide", kept: tuple[str, ...] = ("lm_head",)) -> Any:
    made = checkpoint(layout, make_weights(MODELS[model]), kept)
    config = {**MODELS[model], **made.config}
    return write_folder(path, config, made.stored), config, made.meant


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_means_what_its_maker_meant(layout: str, model: str, tmp_path: Path) -> None:
    folder, config, meant = folder_of(tmp_path / "quantised", layout, model)
    expected = linears(load(write_folder(tmp_path / "meant", MODELS[model], meant), MODELS[model]))
    found = linears(load(folder, config))
    for name, weight in found.items():
        assert isinstance(weight, QuantizedWeight) and weight.codes.dtype.itemsize == 1
        assert torch.equal(plain(weight), plain(expected[name])), name


@pytest.mark.parametrize("layout", ["compressed_channel", "fp8_block", "awq", "gptq"])
def test_the_model_answers_as_one_of_the_dequantised_weights(layout: str, make_runner: MakeRunner) -> None:
    made = checkpoint(layout, make_weights(WIDE))
    feeder = StepFeeder(make_runner({**WIDE, **made.config}, made.stored))
    ids = [5, 9, 41, 17, 3, 88]
    assert feeder.generate(0, ids, 8) == dense_greedy(WIDE, made.meant, ids, 8)


def test_ignored_linears_stay_as_they_are(tmp_path: Path) -> None:
    folder, config, meant = folder_of(
        tmp_path, "fp8_block", kept=("lm_head", "layers.1.mlp.down_proj", "0.self_attn.k_proj")
    )
    found = linears(load(folder, config))
    assert isinstance(found["0.down"], QuantizedWeight) and isinstance(found["1.down"], Tensor)
    assert torch.equal(plain(found["1.down"]), meant["model.layers.1.mlp.down_proj.weight"])
    # One of three that are joined is plain, so all are.
    assert isinstance(found["0.qkv"], Tensor)
    assert torch.equal(found["0.qkv"], torch.cat([meant[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv"]))


def test_lists_name_the_linears_of_the_text_part() -> None:
    names = ["vision_tower.layers.0.q_proj", "language_model.model.layers.1.mlp", "re:.*o_proj$"]
    config = {"quant_method": "fp8", "modules_to_not_convert": names}
    method = parse_spec({**TINY, "quantization_config": config}, CONTEXT).quantization
    assert method is not None and method.ignored == ("model.layers.1.mlp", "re:.*o_proj$")
    assert not method.covers("model.layers.1.mlp.down_proj.weight", (8, 8))
    assert not method.covers("model.layers.10.self_attn.o_proj.weight", (8, 8))
    assert method.covers("model.layers.10.mlp.down_proj.weight", (8, 8))


def test_a_last_linear_that_is_not_ignored_is_quantised(make_runner: MakeRunner) -> None:
    made = checkpoint("compressed_channel", make_weights(WIDE), kept=("no_such",))
    assert "lm_head.weight_scale" in made.stored
    feeder = StepFeeder(make_runner({**WIDE, **made.config}, made.stored))
    assert feeder.generate(0, [7, 8, 9], 6) == dense_greedy(WIDE, made.meant, [7, 8, 9], 6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_hold_parts_of_the_whole(layout: str, tmp_path: Path) -> None:
    # Half of the columns are whole blocks.
    config = {**EVEN, "intermediate_size": 512}
    made = checkpoint(layout, make_weights(config))
    config |= made.config
    folder = write_folder(tmp_path, config, made.stored)
    whole = linears(load(folder, config))
    halves = [linears(load(folder, config, Shard(rank, 2))) for rank in range(2)]
    for name, weight in whole.items():
        parts = [plain(half[name]) for half in halves]
        if name.endswith(("output", "down")):
            assert torch.equal(torch.cat(parts, 1), plain(weight)), name
            continue
        pieces = 3 if name.endswith("qkv") else 2
        chunks = [torch.cat(both) for both in zip(*(part.chunk(pieces) for part in parts), strict=True)]
        assert torch.equal(torch.cat(chunks), plain(weight)), name


def test_columns_that_cut_a_block_are_an_error() -> None:
    weight = quantized(
        torch.randn(8, 256), parse_spec({**TINY, **checkpoint("fp8_block", {}).config}, CONTEXT).quantization
    )  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no whole groups of 128"):
        weight.columns(0, 64)


def test_columns_that_four_bits_cannot_pack_are_refused_by_name(tmp_path: Path) -> None:
    config = {**TINY, "intermediate_size": 144}
    made = checkpoint("gptq_v2_row", make_weights(config))
    with pytest.raises(ModelError, match=r"down_proj.weight: 144 columns are no whole groups of 32"):
        load(write_folder(tmp_path, {**config, **made.config}, made.stored), {**config, **made.config})


def test_weights_of_two_kinds_are_not_joined() -> None:
    method = parse_spec(TINY, CONTEXT, "fp8").quantization
    assert method is not None
    one, other = quantized(torch.randn(8, 32), method), quantized(torch.randn(8, 64), method)
    assert joined([one, other], torch.cat) is None


def test_fp8_on_loading_is_the_checkpoint_of_a_tool(tmp_path: Path) -> None:
    weights = make_weights(WIDE)
    found = linears(load(write_folder(tmp_path, WIDE, weights), WIDE, asked="fp8"))
    for name in ("o_proj", "down_proj"):
        part = "self_attn" if name == "o_proj" else "mlp"
        weight = weights[f"model.layers.1.{part}.{name}.weight"]
        scale = weight.abs().amax(1, keepdim=True) / 448
        held = found["1.output" if name == "o_proj" else "1.down"]
        assert isinstance(held, QuantizedWeight) and held.group == (1, weight.shape[1])
        # Codes are at most half a step of three bits of mantissa away.
        assert ((plain(held) - weight).abs() <= torch.maximum(weight.abs() / 16, scale * 2**-9)).all()


@pytest.mark.parametrize("layout", ["plain", *LAYOUTS])
def test_the_bytes_that_the_plan_counts_are_those_that_are_held(layout: str, tmp_path: Path) -> None:
    config = EVEN if layout == "plain" else folder_of(tmp_path, layout, "even")[1]
    spec = parse_spec(config, CONTEXT, "fp8" if layout == "plain" else "auto")
    method = spec.quantization
    assert method is not None
    is_kept = is_kept_on(method.kind, is_cuda=True), is_kept_on(method.kind, is_cuda=False)
    made = dummy_tensors(spec, Shard(), torch.bfloat16, CPU)
    parts = [made.embedding, made.final_norm, made.lm_head]
    parts += [getattr(layer, name) for layer in made.layers for name in layer.__slots__]
    held, plain_bytes = (
        sum(part.nbytes for part in parts if part is not None),
        weight_bytes(parse_spec(EVEN, CONTEXT), 2),
    )
    assert held < 0.8 * plain_bytes and any(is_kept)
    # Otherwise a device dequantises on loading.
    assert weight_bytes(spec, 2, is_cuda=True) == (held if is_kept[0] else plain_bytes)
    assert weight_bytes(spec, 2, is_cuda=False) == (held if is_kept[1] else plain_bytes)


def test_what_is_shared_is_what_is_mapped(tmp_path: Path) -> None:
    folder, config, _ = folder_of(tmp_path, "fp8_block")
    manifest, descriptor = share(load(folder, config), 1)
    mapped, expected = linears(map_weights(manifest)), linears(load(folder, config))
    for name, weight in expected.items():
        other = mapped[name]
        assert isinstance(weight, QuantizedWeight) and isinstance(other, QuantizedWeight)
        assert (other.kind, other.shape, other.group) == (weight.kind, weight.shape, weight.group)
        assert torch.equal(plain(other), plain(weight))
    assert isinstance(descriptor, int)
    os.close(descriptor)


def test_the_linear_of_any_device_is_a_plain_one_on_the_dequantised_weight() -> None:
    method = parse_spec(TINY, CONTEXT, "fp8").quantization
    assert method is not None
    up, down = quantized(torch.randn(48, 32), method), quantized(torch.randn(32, 24), method)
    x, residual, bias = torch.randn(3, 32), torch.randn(3, 48), torch.randn(48)
    found, expected = DequantizingLinear(up, bias, None), PlainLinear(plain(up), bias, None)
    assert torch.equal(found(x), expected(x)) and torch.equal(found.add(x, residual), expected.add(x, residual))
    mlp = QuantizedMlp(DequantizingLinear(up, None, None), DequantizingLinear(down, None, None))
    other = PlainMlp(plain(up), plain(down), None)
    assert torch.equal(mlp(x), other(x)) and torch.equal(mlp.add(x, x), other.add(x, x))
    out = torch.empty(3, 48)
    DequantizingLinear(up, None, None).write(x, out)
    assert torch.allclose(out, x @ plain(up).T, atol=1e-5)


CHANNEL = LAYOUTS["compressed_channel"][0]
GROUP = CHANNEL["config_groups"]["group_0"]
PACKED = LAYOUTS["compressed_int4"][0]
INTEGERS = PACKED["config_groups"]["group_0"]["weights"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "aqlm"}, "quantization_config.quant_method aqlm is not supported; only compressed-tensors"),
        ({"bits": 4}, r"quant_method \(none\) is not supported"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "quantization_config.fmt e5m2 is not supported; only e4m3"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"weight_block_size \[64, 64\]"),
        ({"quant_method": "fp8", "ignored_layers": "lm_head"}, "ignored_layers in config.json is no list of names"),
        ({"quant_method": "fp8", "ignored_layers": ["re:("]}, "ignored_layers in config.json is no list of names"),
        ({**CHANNEL, "config_groups": {}}, "has 0 groups"),
        ({**CHANNEL, "config_groups": {"a": GROUP, "b": GROUP}}, "has 2 groups"),
        ({**CHANNEL, "config_groups": 3}, "config_groups in config.json is no object"),
        ({**CHANNEL, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format sparse-24-bitmask"),
        (
            {**CHANNEL, "config_groups": {"g": {**GROUP, "weights": {**GROUP["weights"], "type": "complex"}}}},
            "config_groups.g.weights.type complex is not supported; only float or int is",
        ),
        (
            {**PACKED, "config_groups": {"g": {"weights": {**INTEGERS, "num_bits": 8}}}},
            "config_groups.g.weights.num_bits 8",
        ),
        (
            {**PACKED, "config_groups": {"g": {"weights": {**INTEGERS, "actorder": "group"}}}},
            "g.weights.actorder group is not",
        ),
        ({**LAYOUTS["gptq"][0], "desc_act": True}, "quantization_config.desc_act True is not supported; only False is"),
        ({**LAYOUTS["gptq"][0], "bits": 8}, "quantization_config.bits 8 is not supported; only 4 is"),
        ({**LAYOUTS["awq"][0], "version": "gemv"}, "quantization_config.version gemv is not supported; only gemm"),
        ({**LAYOUTS["awq"][0], "group_size": 48}, "quantization_config.group_size 48 is not supported; only 32 or 64"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_field(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse_spec({**TINY, "quantization_config": config}, CONTEXT)


def test_a_request_that_contradicts_the_checkpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from quartet.checkpoint import quantization_config

    other = quantization_config.ON_LOADING["fp8"]
    monkeypatch.setitem(quantization_config.ON_LOADING, "fp8", other.__class__("x", "other", "plain", (1, 0)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--quantization fp8: .* quantised already \(fp8\)"):
        parse_spec({**TINY, **checkpoint("fp8_block", {}).config}, CONTEXT, "fp8")


def test_rows_of_other_integers_join_in_the_form_that_holds_both() -> None:
    four = quantized(torch.randn(4, 64), Quantization("test", "int4", "plain", (1, 32)))
    eight = quantized(torch.randn(2, 64), Quantization("test", "int8", "plain", (1, 16)))
    whole = joined([four, eight], torch.cat)
    assert whole is not None and whole.kind == "int8" and whole.group == (1, 16)
    expected = torch.cat([dequantized(four, torch.float32), dequantized(eight, torch.float32)])
    assert torch.equal(dequantized(whole, torch.float32), expected)
