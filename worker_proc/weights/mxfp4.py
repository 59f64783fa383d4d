"""Numbers of e2m1 in groups of MX with a power of two for each: what MXFP4 is, in torch.

e2m1 has a sign, 2 bits of exponent and 1 of mantissa; its largest number is 6. OCP Microscaling Formats, v1.0.
"""

from itertools import pairwise

import torch
from torch import Tensor

from quartet.checkpoint.quantization import MX

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of the lower three bits of a code; the fourth is the sign."""
_BIAS = 127
_LARGEST_EXPONENT = 2
"""That of 4 and 6."""


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the numbers [out, in] float32 of codes [out, in / 2] and scales [out, in / MX], both uint8; exactly."""
    return torch.ldexp(_numbers(codes), scale.int().unsqueeze(-1) - _BIAS).view(codes.shape[0], -1)


def _numbers(codes: Tensor) -> Tensor:
    """Return what the codes stand for without their scales, [out, in / MX, MX]."""
    numbers = torch.tensor((*MAGNITUDES, *(-one for one in MAGNITUDES)), device=codes.device)
    pairs = torch.stack((codes & 15, codes >> 4), dim=-1).view(codes.shape[0], -1, MX)
    return numbers[pairs.int()]


def as_integers(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers [out, in] int8 and scales [out, in / MX] float32 whose products are the same numbers: twice the
    magnitudes are whole."""
    integers = (2 * _numbers(codes)).to(torch.int8).view(codes.shape[0], -1)
    return integers, torch.ldexp(torch.full_like(scale, 0.5, dtype=torch.float32), scale.int() - _BIAS)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of numbers [out, in], each group by the power of two that the format's authors take: that
    of its largest number, less that of the largest code. What is beyond the codes becomes the largest of them."""
    groups = weight.float().view(weight.shape[0], -1, MX)
    exponent = torch.frexp(groups.abs().amax(-1)).exponent - 1 - _LARGEST_EXPONENT
    exponent = exponent.clamp(-_BIAS, _BIAS)
    scaled = torch.ldexp(groups, -exponent.unsqueeze(-1))
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(MAGNITUDES)], device=weight.device)
    codes = torch.bucketize(scaled.abs(), middles, out_int32=True) | (scaled < 0).int() << 3
    pairs = codes.to(torch.uint8).view(weight.shape[0], -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, (exponent + _BIAS).to(torch.uint8)
