"""Weights in MXFP4: numbers of 4 bits in groups of 32 with a power of two for each, made wide inside a product.

    codes   [E, rows, columns / 2]   uint8: two numbers of e2m1, the first in the lower half
    scales  [E, rows, columns / 32]  uint8: the exponent of a power of two, plus 127

OCP Microscaling Formats, v1.0. What a code stands for is put together from its bits, so that it is exact.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

GROUP = 32


class Mxfp4(NamedTuple):
    """The matrices of a layer's experts; see above."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Matrices, rows, and columns of numbers."""
        count, rows, half = self.codes.shape
        return count, rows, 2 * half

    def is_contiguous(self) -> bool:
        """Whether both tensors are."""
        return self.codes.is_contiguous() and self.scales.is_contiguous()


@triton.jit
def mxfp4_numbers(codes, scales, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return [ROWS, COLUMNS] fp32 of codes [ROWS, COLUMNS / 2] and scales [ROWS, COLUMNS / 32]."""
    codes = codes.to(tl.uint32)
    pairs = tl.reshape(tl.join(codes & 15, codes >> 4), [ROWS, COLUMNS // 32, 32])
    size = pairs & 7
    # 0 and 0.5 have no leading one; the others have an exponent above that of 0.5, and a bit of mantissa.
    half = (size == 1).to(tl.uint32) * 0x3F000000
    bits = tl.where(size > 1, (size << 22) + 0x3F000000, half) | ((pairs & 8) << 28)
    scales = scales.to(tl.uint32)
    # 2^-127 has no leading one.
    powers = tl.where(scales == 0, 0x400000, scales << 23).to(tl.float32, bitcast=True)
    return tl.reshape(bits.to(tl.float32, bitcast=True) * powers[:, :, None], [ROWS, COLUMNS])
