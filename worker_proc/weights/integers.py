"""Integers of 4 and 8 bits in groups: what GroupForm of quartet/checkpoint/quantization.py says, in torch."""

import torch
from torch import Tensor

from quartet.checkpoint.quantization import NIBBLES

_HALF = NIBBLES // 2


def unpacked(codes: Tensor) -> Tensor:
    """Return codes as the integers they stand for, [out, in] int8: of uint8, 4 bits each; int8 as they are."""
    if codes.dtype == torch.int8:
        return codes
    pairs = codes.view(codes.shape[0], -1, _HALF)
    return torch.cat((pairs & 15, pairs >> 4), dim=-1).view(codes.shape[0], -1).view(torch.int8)


def packed(integers: Tensor) -> Tensor:
    """Return integers [out, in] from 0 to 15 as codes of 4 bits [out, in / 2] uint8; `in` is a multiple of NIBBLES."""
    runs = integers.to(torch.uint8).view(integers.shape[0], -1, 2, _HALF)
    return (runs[:, :, 0] | runs[:, :, 1] << 4).view(integers.shape[0], -1)


def dequantize(codes: Tensor, scale: Tensor, minimum: Tensor | None, group: int) -> Tensor:
    """Return the numbers [out, in] float32; scale and minimum are [out, in / group]."""
    numbers = unpacked(codes).view(codes.shape[0], -1, group).float().mul_(scale.float().unsqueeze(-1))
    if minimum is not None:
        numbers.add_(minimum.float().unsqueeze(-1))
    return numbers.view(codes.shape[0], -1)


def quantize4(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes of 4 bits, scale and minimum of numbers [out, in]: from the least to the greatest of each group."""
    groups = weight.float().view(weight.shape[0], -1, group)
    least, greatest = groups.amin(-1), groups.amax(-1)
    scale = ((greatest - least) / 15).clamp_min(torch.finfo(torch.float16).tiny)
    integers = ((groups - least.unsqueeze(-1)) / scale.unsqueeze(-1)).round_().clamp_(0, 15)
    return packed(integers.view(weight.shape)), scale, least


def quantize8(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return codes of 8 bits and scale of numbers [out, in], as Q8_0 of a GGUF file does."""
    groups = weight.float().view(weight.shape[0], -1, group)
    scale = (groups.abs().amax(-1) / 127).clamp_min(torch.finfo(torch.float16).tiny)
    return (groups / scale.unsqueeze(-1)).round_().to(torch.int8).view(weight.shape), scale


def eighths(words: Tensor) -> Tensor:
    """Return the eight integers of 4 bits of each int32 [rows, n], from its lowest bits on, [rows, 8 n] int32."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (words.contiguous().unsqueeze(-1) >> shifts & 15).flatten(1)
