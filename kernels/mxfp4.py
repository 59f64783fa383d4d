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
LARGEST_SCALE = 128
"""The largest of which the bfloat16 of 2^(scale - 1) is a number; it stands for 2."""
# The interpreter knows no instructions of a device.
IS_COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)


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


# Four bytes of codes, and their scales as two pairs of bfloat16, become two pairs of the numbers in lower halves, and
# two of those in upper halves. Each byte goes into the upper half of 16 bits; exponent and mantissa of a code, moved to
# their places in bfloat16, are its number times 2^-126, also without a leading one.
_PAIRS_ASM = """
    prmt.b32 t, $4, 0, {bytes};
    shl.b32 a, t, 4;
    shr.u32 b, t, 2;
    and.b32 b, b, 0x01c001c0;
    lop3.b32 a, a, 0x80008000, b, 0xEA;
    fma.rn.bf16x2 ${lower}, a, ${scale}, z;
    shr.u32 b, t, 6;
    and.b32 b, b, 0x01c001c0;
    lop3.b32 a, t, 0x80008000, b, 0xEA;
    fma.rn.bf16x2 ${upper}, a, ${scale}, z;"""
WIDEN_ASM = tl.constexpr(
    "\n{\n    .reg .b32 t, a, b, z;\n    mov.b32 z, 0x80008000;"
    + _PAIRS_ASM.format(bytes="0x1404", lower=0, upper=2, scale=5)
    + _PAIRS_ASM.format(bytes="0x3424", lower=1, upper=3, scale=6)
    + "\n}\n"
)


@triton.jit
def mxfp4_numbers(codes, scales, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """Return [ROWS, COLUMNS] in DTYPE of codes [ROWS, COLUMNS / 2] and scales [ROWS, COLUMNS / 32], of which none is
    above LARGEST_SCALE; in bfloat16 on a device in few instructions."""
    if tl.bfloat16 == DTYPE and IS_COMPILED:
        powers = ((scales.to(tl.uint16) + 126) << 7).to(tl.bfloat16, bitcast=True)
        codes = tl.reshape(codes, [ROWS, COLUMNS // 32, 16])
        powers = tl.broadcast_to(powers[:, :, None], [ROWS, COLUMNS // 32, 16])
        lower, upper = tl.inline_asm_elementwise(
            WIDEN_ASM, "=r,=r,=r,=r,r,r,r", [codes, powers], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
        return tl.reshape(tl.join(lower, upper), [ROWS, COLUMNS])
    return _numbers(codes, scales, ROWS, COLUMNS).to(DTYPE)


@triton.jit
def _numbers(codes, scales, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
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
