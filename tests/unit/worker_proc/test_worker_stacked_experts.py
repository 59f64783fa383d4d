"""Experts in stacks with biases, plain and in MXFP4: read, cut among ranks, shared, and computed in torch."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CONTEXT, TINY, make_weights, write_folder
from torch import Tensor

from quartet.checkpoint.quantization import has_cpu_compiler
from quartet.checkpoint.spec import parse_spec
from worker_proc.models.attention_shape import attention_shape
from worker_proc.ops.cpu_ops import CpuOps
from worker_proc.ops.experts import TorchExperts
from worker_proc.ops.interface import Branch, Linear
from worker_proc.ops.linear import PlainLinear
from worker_proc.ops.quantized import DequantizingLinear
from worker_proc.weights import mxfp4
from worker_proc.weights.dummy import dummy_tensors
from worker_proc.weights.loader import Loader
from worker_proc.weights.quantized import QuantizedWeight, Weight, dequantized, mxfp4_as_bytes
from worker_proc.weights.shared import map_weights, share
from worker_proc.weights.tensors import ExpertTensors, LayerTensors, ModelTensors, Shard

CPU = torch.device("cpu")
COUNT, HIDDEN, WIDTH, TOP_K = 5, 32, 64, 2
CONFIG: dict[str, Any] = {
    **TINY,
    "architectures": ["GptOssForCausalLM"],
    "head_dim": 16,
    "intermediate_size": WIDTH,
    "num_local_experts": COUNT,
    "num_experts_per_tok": TOP_K,
    "swiglu_limit": 0.75,
    "rope_scaling": None,
}
PACKED = {**CONFIG, "quantization_config": {"quant_method": "mxfp4"}}
# By the definition of e2m1.
NUMBERS = [sign * size for sign in (1.0, -1.0) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]


def packed_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of a checkpoint whose experts are random codes, and of the plain one that it means."""
    plain, generator = make_weights(CONFIG), torch.Generator().manual_seed(3)
    stored = dict(plain)
    for name in [name for name in plain if name.endswith(("gate_up_proj", "down_proj"))]:
        count, columns, rows = stored.pop(name).shape
        codes = torch.randint(16, (count, rows, columns // 32, 32), generator=generator)
        scales = torch.randint(120, 127, (count, rows, columns // 32), generator=generator)
        meant = torch.tensor(NUMBERS)[codes] * 2.0 ** (scales - 127).unsqueeze(-1)
        plain[name] = meant.view(count, rows, columns).transpose(1, 2).contiguous()
        stored[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        stored[f"{name}_scales"] = scales.to(torch.uint8)
    return stored, plain


def load(config: dict[str, Any], weights: dict[str, Tensor], folder: Path, shard: Shard = Shard()) -> ModelTensors:  # noqa: B008
    write_folder(folder, config, weights)
    return Loader(folder, parse_spec(config, CONTEXT), shard, torch.float32, CPU, lambda: None).load()


def first(tensors: ModelTensors) -> LayerTensors:
    return next(iter(tensors.layers))


def experts_of(tensors: ModelTensors) -> ExpertTensors:
    experts = first(tensors).experts
    assert experts is not None
    return experts


def linear(weight: Weight, bias: Tensor | None) -> Linear:
    return (DequantizingLinear if isinstance(weight, QuantizedWeight) else PlainLinear)(weight, bias, None)  # type: ignore[arg-type]


def run(config: dict[str, Any], tensors: ModelTensors) -> Branch:
    spec = parse_spec(config, CONTEXT).experts
    assert spec is not None
    return TorchExperts(spec, experts_of(tensors), None, None, partial(pytest.fail, "no plain MLP"), linear)


def expected(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Each token by itself, expert by expert, in float64."""
    named = {name.removeprefix("model.layers.0.mlp."): tensor.double() for name, tensor in weights.items()}
    rows = []
    for token in x.double():
        scores = named["router.weight"] @ token + named["router.bias"]
        best = scores.topk(TOP_K)
        total = torch.zeros(HIDDEN, dtype=torch.float64)
        for weight, expert in zip(best.values.softmax(-1), best.indices.tolist(), strict=True):
            both = token @ named["experts.gate_up_proj"][expert] + named["experts.gate_up_proj_bias"][expert]
            gate, up = both[::2].clamp(max=0.75), both[1::2].clamp(-0.75, 0.75)
            hidden = gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)
            total += weight * (hidden @ named["experts.down_proj"][expert] + named["experts.down_proj_bias"][expert])
        rows.append(total)
    return torch.stack(rows).float()


@pytest.mark.parametrize("is_packed", [False, True])
def test_experts_are_the_weighted_sum(is_packed: bool, tmp_path: Path) -> None:
    stored, plain = packed_weights()
    config, weights = (PACKED, stored) if is_packed else (CONFIG, plain)
    x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(1))
    tensors = load(config, weights, tmp_path)
    assert isinstance(experts_of(tensors).down, QuantizedWeight) == is_packed
    experts = run(config, load(config, weights, tmp_path))
    torch.testing.assert_close(experts(x), expected(plain, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(experts.add(x[:1], x[:1]), x[:1] + expected(plain, x[:1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_packed", [False, True])
def test_two_ranks_add_up_to_the_whole(is_packed: bool, tmp_path: Path) -> None:
    stored, plain = packed_weights()
    config, weights = (PACKED, stored) if is_packed else (CONFIG, plain)
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(2))
    parts = [run(config, load(config, weights, tmp_path / str(i), Shard(i, 2)))(x) for i in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], expected(plain, x), rtol=1e-5, atol=1e-5)


def test_codes_mean_what_a_plain_checkpoint_holds(tmp_path: Path) -> None:
    stored, plain = packed_weights()
    packed = experts_of(load(PACKED, stored, tmp_path / "packed"))
    apart = experts_of(load(CONFIG, plain, tmp_path / "plain"))
    for number in range(COUNT):
        for one, other in zip(packed.expert(number), apart.expert(number), strict=True):
            assert torch.equal(dequantized(one, torch.float32), dequantized(other, torch.float32))


def test_another_process_maps_the_same_codes(tmp_path: Path) -> None:
    stored, _ = packed_weights()
    manifest, kept = share(load(PACKED, stored, tmp_path), 1)
    mapped, read = experts_of(map_weights(manifest)), experts_of(load(PACKED, stored, tmp_path))
    assert isinstance(mapped.gate_up, QuantizedWeight) and isinstance(read.gate_up, QuantizedWeight)
    assert torch.equal(mapped.gate_up.codes, read.gate_up.codes) and mapped.router_bias is not None
    assert isinstance(kept, int)
    os.close(kept)


@pytest.mark.parametrize("config", [CONFIG, PACKED])
def test_random_weights_have_the_form_of_read_ones(config: dict[str, Any], tmp_path: Path) -> None:
    stored, plain = packed_weights()
    read = experts_of(load(config, stored if config is PACKED else plain, tmp_path))
    made = experts_of(dummy_tensors(parse_spec(config, CONTEXT), Shard(), torch.float32, CPU))
    for name in ("gate_up", "down", "router_bias", "gate_up_bias", "down_bias"):
        one, other = getattr(read, name), getattr(made, name)
        assert type(one) is type(other) and one.shape == other.shape


def test_every_code_and_scale_is_exact() -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(253, 1)
    scales = torch.arange(253, dtype=torch.uint8).unsqueeze(1).repeat(1, 16)
    found = mxfp4.dequantize(codes, scales)
    wanted = torch.tensor([[NUMBERS[byte & 15], NUMBERS[byte >> 4]] for byte in range(256)]).view(-1).double()
    exact = wanted * 2.0 ** (torch.arange(253, dtype=torch.float64) - 127).unsqueeze(1)
    assert torch.equal(found.double(), exact)
    again = mxfp4.dequantize(*mxfp4.quantize(found[3:250]))
    assert torch.equal(again, found[3:250])


def test_the_cpu_computes_from_integers_with_the_same_numbers() -> None:
    scales = torch.arange(3, 250, dtype=torch.uint8).unsqueeze(1).repeat(1, 16)
    weight = QuantizedWeight("mxfp4", (247, 512), (1, 32), torch.arange(256, dtype=torch.uint8).repeat(247, 1),
                             {"scale": scales})  # fmt: skip
    held = mxfp4_as_bytes(weight)
    assert held.codes.dtype == torch.int8
    assert torch.equal(dequantized(held, torch.float32), dequantized(weight, torch.float32))
    shape, method = (4, 512, 247), parse_spec(PACKED, CONTEXT).quantization
    assert method is not None
    assert method.held_bytes("experts.down_proj", shape, 4, is_cuda=True) == 4 * weight.nbytes
    if has_cpu_compiler():
        assert method.held_bytes("experts.down_proj", shape, 4, is_cuda=False) == 4 * held.nbytes
    x, part = torch.randn(3, 512, generator=torch.Generator().manual_seed(1)), weight.rows(104, 128)
    pytest.importorskip("llvmlite")
    y = CpuOps(attention_shape(parse_spec(PACKED, CONTEXT), Shard(), 16, CONTEXT, CPU), torch.float32).linear(part)
    torch.testing.assert_close(y(x), x @ dequantized(part, torch.float32).T, rtol=1e-5, atol=1e-5)


def test_numbers_become_the_nearest_that_their_group_has() -> None:
    numbers = torch.tensor([[0.2, 0.3, -0.9, 5.4, 7.9, -0.0, 2.4, 2.6, *[0.0] * 24, *[0.0] * 32]])
    found = mxfp4.dequantize(*mxfp4.quantize(numbers))[0].tolist()
    assert found[:8] == [0.0, 0.5, -1.0, 6.0, 6.0, 0.0, 2.0, 3.0] and not any(found[8:])
