"""The table of rotary embedding angles."""

import math

import torch
from torch import Tensor

from quartet.checkpoint.rotary import RopeSpec


def cos_sin_table(spec: RopeSpec, head_dim: int, num_positions: int) -> Tensor:
    """Return [num_positions, head_dim] fp32 on the CPU: the first half cosines, the second half sines.

    llama3 scaling follows Meta's rule as published by Hugging Face: wavelengths above original_context /
    low_freq_factor are stretched by `factor`, those below original_context / high_freq_factor are kept, and those
    between are interpolated.
    """
    frequencies = 1.0 / spec.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if spec.kind == "linear":
        frequencies = frequencies / spec.factor
    elif spec.kind == "llama3":
        frequencies = _llama3(frequencies, spec)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _llama3(frequencies: Tensor, spec: RopeSpec) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    longest = spec.original_context / spec.low_freq_factor
    shortest = spec.original_context / spec.high_freq_factor
    share = (spec.original_context / wavelengths - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    blended = (1 - share) * frequencies / spec.factor + share * frequencies
    scaled = torch.where(wavelengths > longest, frequencies / spec.factor, frequencies)
    is_between = (wavelengths <= longest) & (wavelengths >= shortest)
    return torch.where(is_between, blended, scaled)
