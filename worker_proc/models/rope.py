"""The table of rotary embedding angles."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from quartet.checkpoint.rotary import RopeSpec


def cos_sin_table(spec: RopeSpec | None, head_dim: int, num_positions: int) -> Tensor:
    """Return [num_positions, head_dim] fp32 on the CPU: the first half cosines, the second half sines; without rotary
    embedding one row, which rotates nothing.

    Dimensions are in the order of RopeSpec.head_order, unrotated ones with cosine 1 and sine 0.

    llama3 scaling follows Meta's rule as published by Hugging Face: wavelengths above original_context /
    low_freq_factor are stretched by `factor`, those below original_context / high_freq_factor are kept, and those
    between are interpolated.
    """
    if spec is None:
        return torch.cat((torch.ones(1, head_dim // 2), torch.zeros(1, head_dim // 2)), dim=-1)
    dim = spec.rotary_dim(head_dim)
    frequencies = 1.0 / spec.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
    if spec.kind == "linear":
        frequencies = frequencies / spec.factor
    elif spec.kind == "llama3":
        frequencies = _llama3(frequencies, spec)
    elif spec.kind == "yarn":
        frequencies = _yarn(frequencies, spec)
    elif spec.kind == "proportional":
        frequencies = frequencies / spec.factor
        frequencies[int(spec.turning_share * head_dim // 2) :] = 0.0
    elif spec.kind == "longrope":
        frequencies = frequencies / torch.tensor(spec.divisors)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    if spec.attention_factor != 1.0:
        cos, sin = cos * spec.attention_factor, sin * spec.attention_factor
    if dim < head_dim:
        widening = (0, (head_dim - dim) // 2)
        cos, sin = functional.pad(cos, widening, value=1.0), functional.pad(sin, widening)
    return torch.cat((cos, sin), dim=-1)


def _yarn(frequencies: Tensor, spec: RopeSpec) -> Tensor:
    """Stretch by `factor` the frequencies that turn fewer than beta_slow times in the original context, keep those that
    turn more than beta_fast times, and interpolate between by index."""
    pairs = len(frequencies)
    turns = spec.original_context / (2 * math.pi)
    low, high = (pairs * math.log(turns / beta) / math.log(spec.theta) for beta in (spec.beta_fast, spec.beta_slow))
    if spec.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = (torch.arange(pairs, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    share = ramp.clamp(0, 1)
    return frequencies / spec.factor * share + frequencies * (1 - share)


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
