"""Experts: read from a checkpoint, by each rank its part; the torch loop against the sum over all experts."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONTEXT, EXPERTS, make_weights, write_folder
from torch import Tensor
from torch.nn.functional import silu

from quartet.checkpoint.spec import parse_spec
from worker_proc.ops.experts import TorchExperts
from worker_proc.ops.interface import Branch
from worker_proc.ops.linear import PlainLinear, PlainMlp
from worker_proc.tuning.linears import Linear, linears_of
from worker_proc.weights.loader import Loader
from worker_proc.weights.tensors import LayerTensors, Shard

CPU = torch.device("cpu")


def first_layer(config: dict[str, Any], weights: dict[str, Tensor], folder: Path, shard: Shard) -> LayerTensors:
    write_folder(folder, config, weights)
    spec = parse_spec(config, CONTEXT)
    return next(iter(Loader(folder, spec, shard, torch.float32, CPU, lambda: None).load().layers))


def packed(config: dict[str, Any], layer: LayerTensors) -> Branch:
    spec, shared = parse_spec(config, CONTEXT).experts, None
    assert spec is not None and layer.experts is not None
    if layer.gate_up is not None and layer.down is not None:
        shared = PlainMlp(layer.gate_up, layer.down, None)
    packing = partial(PlainMlp, all_reduce=None), partial(PlainLinear, all_reduce=None)
    return TorchExperts(spec, layer.experts, shared, None, *packing)


def expected(config: dict[str, Any], weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Every expert of layer 0 over every token, in float64, most with weight 0."""
    named = {name.removeprefix("model.layers.0.mlp."): tensor.double() for name, tensor in weights.items()}
    x = x.double()

    def mlp(prefix: str) -> Tensor:
        gate, up, down = (named[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    shares = (x @ named["gate.weight"].T).softmax(-1)
    shares = shares * (shares >= shares.topk(config["num_experts_per_tok"]).values[:, -1:])
    if config["norm_topk_prob"]:
        shares = shares / shares.sum(-1, keepdim=True)
    y = sum((shares[:, i : i + 1] * mlp(f"experts.{i}") for i in range(config["num_experts"])), torch.zeros(()))
    if "shared_expert.down_proj.weight" in named:
        y = y + (x @ named["shared_expert_gate.weight"].T).sigmoid() * mlp("shared_expert")
    return y


@pytest.mark.parametrize("is_normalised", [True, False])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_the_weighted_sum(name: str, is_normalised: bool, tmp_path: Path) -> None:
    config = {**EXPERTS[name], "norm_topk_prob": is_normalised}
    weights, x = make_weights(config), torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    run = packed(config, first_layer(config, weights, tmp_path, Shard()))
    wanted = expected(config, weights, x).float()
    torch.testing.assert_close(run(x), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(x[:1]), wanted[:1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run.add(x, x), x + wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXPERTS)
def test_two_ranks_add_up_to_the_whole(name: str, tmp_path: Path) -> None:
    config = EXPERTS[name]
    weights, x = make_weights(config), torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    parts = [packed(config, first_layer(config, weights, tmp_path / str(i), Shard(i, 2)))(x) for i in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], expected(config, weights, x).float(), rtol=1e-5, atol=1e-5)


def test_tuning_takes_the_dense_mlps_and_shared_experts_that_there_are() -> None:
    def mlps(name: str) -> list[Linear]:
        return [one for one in linears_of(parse_spec(EXPERTS[name], CONTEXT)) if one.form == "gated"]

    assert mlps("qwen3_moe") == [Linear("gated", 96, 32, 1)] and mlps("qwen2_moe") == [Linear("gated", 48, 32, 2)]


@pytest.mark.parametrize("shard", [Shard(), Shard(1, 2)])
def test_experts_in_one_tensor_read_as_those_apart(shard: Shard, tmp_path: Path) -> None:
    config = EXPERTS["qwen2_moe"]
    weights = make_weights(config)
    apart = first_layer(config, weights, tmp_path / "apart", shard)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.mlp.experts."
        own = [{n: weights.pop(f"{prefix}{i}.{n}_proj.weight") for n in ("gate", "up", "down")} for i in range(6)]
        weights[f"{prefix}gate_up_proj"] = torch.stack([torch.cat((one["gate"], one["up"])) for one in own])
        weights[f"{prefix}down_proj"] = torch.stack([one["down"] for one in own])
    stacked = first_layer(config, weights, tmp_path / "stacked", shard)
    assert apart.experts is not None and stacked.experts is not None
    assert torch.equal(apart.experts.gate_up, stacked.experts.gate_up)
    assert torch.equal(apart.experts.down, stacked.experts.down)
