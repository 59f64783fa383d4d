"""Linears in the layouts in which tools store integers of 4 bits, eight in an int32, with the numbers that they mean.

Written from what the formats say, element by element, and not from the reader: AutoAWQ's GEMM packing, GPTQ's, and
pack-quantized of compressed-tensors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Quantise = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]

# Which of eight neighbouring outputs is in which place of an AWQ int32, the lowest first.
_AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


def _quantised(weight: Tensor, group: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return integers [out, in], zero points and scales [out, groups], and what they mean."""
    groups = weight.view(weight.shape[0], -1, group)
    least, most = groups.amin(-1), groups.amax(-1)
    if symmetric:
        scale, zeros = (groups.abs().amax(-1) / 7).half(), torch.full_like(least, 8)
    else:
        scale = ((most - least) / 15).half()
        zeros = (-least / scale.float()).round().clamp(0, 15)
    integers = (groups / scale.float().unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, 15)
    meant = (integers - zeros.unsqueeze(-1)) * scale.float().unsqueeze(-1)
    return integers.view(weight.shape).int(), zeros.int(), scale, meant.view(weight.shape)


def _packed(integers: Tensor, places: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """Return int32 [rows, n / 8] of integers [rows, n]; `places` says which of eight is in each four bits."""
    words = torch.zeros(integers.shape[0], -(-integers.shape[1] // 8), dtype=torch.int64)
    for word in range(words.shape[1]):
        for bits, place in enumerate(places):
            if 8 * word + place < integers.shape[1]:
                words[:, word] |= integers[:, 8 * word + place].long() << (4 * bits)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    integers, zeros, scale, meant = _quantised(weight, 32, symmetric=False)
    return {
        "qweight": _packed(integers.T, _AWQ_PLACES),
        "qzeros": _packed(zeros.T, _AWQ_PLACES),
        "scales": scale.T.contiguous(),
    }, meant


def _gptq(symmetric: bool, group: int, zero_offset: int) -> Quantise:
    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        size = group or weight.shape[1]
        integers, zeros, scale, meant = _quantised(weight, size, symmetric)
        return {
            "qweight": _packed(integers).T.contiguous(),
            "qzeros": _packed((zeros.T - zero_offset) % 16),
            "scales": scale.T.contiguous(),
            "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // size,
        }, meant

    return quantise


def _pack_quantized(symmetric: bool) -> Quantise:
    def quantise(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        integers, zeros, scale, meant = _quantised(weight, 32, symmetric)
        stored = {
            "weight_packed": _packed(integers),
            "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored["weight_zero_point"] = _packed(zeros.T).T.contiguous()
        return stored, meant

    return quantise


def _compressed(symmetric: bool) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": symmetric}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {**weights, "actorder": None}}},
        "ignore": ["lm_head"],
    }


def _gptq_config(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "desc_act": False, "modules_to_not_convert": ["lm_head"], **more}


PACKED_LAYOUTS: dict[str, tuple[dict[str, Any], Quantise]] = {
    "awq": (
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": ["lm_head"],
        },
        _awq,
    ),
    "gptq": (_gptq_config(group_size=32, sym=False), _gptq(False, 32, zero_offset=1)),
    "gptq_v2_row": (_gptq_config(group_size=-1, sym=True, checkpoint_format="gptq_v2"), _gptq(True, 0, zero_offset=0)),
    "compressed_int4": (_compressed(True), _pack_quantized(True)),
    "compressed_int4_zeros": (_compressed(False), _pack_quantized(False)),
}
"""As LAYOUTS of tests/support/quantized_checkpoints.py."""
