"""Checkpoints in the layouts in which tools store FP8 weights, made of plain ones, with what they mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.support.packed_checkpoints import PACKED_LAYOUTS

E4M3 = torch.float8_e4m3fn


class Checkpoint(NamedTuple):
    """`config` is what config.json gains, `stored` are the file's tensors, `meant` the weights by their plain names."""

    config: dict[str, Any]
    stored: dict[str, Tensor]
    meant: dict[str, Tensor]


def _coded(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes, and the numbers that they mean with a scale that has been spread over the weight."""
    codes = (weight / scale).clamp(-448, 448).to(E4M3)
    return codes, codes.float() * scale


def per_tensor(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax() / 448
    codes, meant = _coded(weight, scale)
    return {"weight": codes, "weight_scale": scale.view(1), "input_scale": torch.tensor([0.25])}, meant


def per_channel(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    codes, meant = _coded(weight, scale.float())
    return {"weight": codes, "weight_scale": scale}, meant


def _block_wise(name: str) -> Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]:
    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        rows, columns = -(-weight.shape[0] // 128), -(-weight.shape[1] // 128)
        scale = torch.empty(rows, columns)
        for i in range(rows):
            for j in range(columns):
                scale[i, j] = weight[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128].abs().amax() / 448
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
        codes, meant = _coded(weight, spread)
        return {"weight": codes, name: scale}, meant

    return quantise


def _group(strategy: str, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False, **more}
    activations = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    return {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}


def _compressed(strategy: str, **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": _group(strategy, **more)},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


LAYOUTS: dict[str, tuple[dict[str, Any], Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]]] = {
    **PACKED_LAYOUTS,
    "compressed_tensor": (_compressed("tensor"), per_tensor),
    "compressed_channel": (_compressed("channel"), per_channel),
    "compressed_block": (_compressed("block", block_structure=[128, 128]), _block_wise("weight_scale")),
    "fp8_block": (
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        _block_wise("weight_scale_inv"),
    ),
    "fp8_tensor": ({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, per_tensor),
    "fbgemm_fp8": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        per_channel,
    ),
}
"""By name: the quantization_config, and what a linear's weight is stored as, with the numbers that this means."""


def checkpoint(layout: str, weights: dict[str, Tensor], kept: tuple[str, ...] = ("lm_head",)) -> Checkpoint:
    """Return plain weights in a layout. `kept` are ends of the names of linears that stay as they are."""
    config, quantise = LAYOUTS[layout]
    config = {**config}
    for field in ("ignore", "ignored_layers", "modules_to_not_convert"):
        if field in config or (field == "modules_to_not_convert" and layout == "fp8_block"):
            config[field] = list(kept)
    stored, meant = dict(weights), dict(weights)
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if weight.dim() == 2 and "embed_tokens" not in name and not module.endswith(kept):
            parts, meant[name] = quantise(weight)
            del stored[name]
            stored |= {f"{module}.{ending}": part for ending, part in parts.items()}
    return Checkpoint({"quantization_config": config}, stored, meant)
