"""Numbers of e4m3 with a float32 scale for each group: made, and turned into plain numbers.

e4m3 has a sign, 4 bits of exponent and 3 of mantissa; its largest number is 448, and it has no infinity.
"""

import torch
from torch import Tensor
from torch.nn import functional

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0


def quantize(weight: Tensor, group: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the codes [out, in] e4m3 of a weight [out, in], and the scales [out / rows, in / columns] fp32 (rounded
    up) of groups of so many rows and columns, by which the largest number of a group becomes the largest of e4m3."""
    rows, columns = group
    out, depth = weight.shape
    wide = weight.float()
    padded = functional.pad(wide.abs(), (0, -depth % columns, 0, -out % rows))
    largest = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns).amax((1, 3))
    # A group of zeros has any scale; a very small one would make codes that are no numbers.
    scale = (largest / LARGEST).clamp_min(1e-12)
    codes = (wide / spread(scale, group, (out, depth))).clamp_(-LARGEST, LARGEST).to(E4M3)
    return codes, scale


def coded(numbers: Tensor) -> Tensor:
    """Return numbers as bytes of e4m3, limited to its largest: not every operator of torch takes the type itself."""
    return numbers.clamp(-LARGEST, LARGEST).to(E4M3).view(torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, group: tuple[int, int]) -> Tensor:
    """Return the numbers [out, in] fp32 of codes and scales as `quantize` returns them."""
    return codes.float() * spread(scale, group, (codes.shape[0], codes.shape[1]))


def spread(scale: Tensor, group: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """Return the scale of each number of a weight of `shape`; in a direction with one group it has an extent of 1."""
    rows, columns = group
    if scale.shape[1] > 1:
        scale = scale.repeat_interleave(columns, 1)[:, : shape[1]]
    if rows > 1 and scale.shape[0] > 1:
        scale = scale.repeat_interleave(rows, 0)[: shape[0]]
    return scale
