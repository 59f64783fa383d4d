"""Numbers of e4m3 inside kernels: made wider, and made of activations.

Four bits of exponent and three of mantissa, moved to their places in a wider type, are the number times a power of two,
also for subnormal ones. That power is 2^-120 in bfloat16 and in float32; one exact product takes it back. No code is
the NaN 0x7f or 0xff: a tool writes numbers.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

LARGEST = 448.0
GROUP = 128
"""Columns of a group of activations that share a scale, where the weight has blocks."""
_MAX_WIDTH = 65536

# The interpreter knows no instructions of a device.
IS_COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)

# Four codes in a register become two pairs of bfloat16: each byte into the upper half of 16 bits, exponent and mantissa
# shifted down by 4, the sign put back, times 2^120.
WIDEN_ASM = tl.constexpr("""
{
    .reg .b32 lo, hi, a, b;
    prmt.b32 lo, $2, 0, 0x1404;
    prmt.b32 hi, $2, 0, 0x3424;
    shr.u32 a, lo, 4;
    shr.u32 b, hi, 4;
    and.b32 a, a, 0x07f007f0;
    and.b32 b, b, 0x07f007f0;
    lop3.b32 a, lo, 0x80008000, a, 0xEA;
    lop3.b32 b, hi, 0x80008000, b, 0xEA;
    mov.b32 lo, 0x7b807b80;
    mov.b32 hi, 0x80008000;
    fma.rn.bf16x2 $0, a, lo, hi;
    fma.rn.bf16x2 $1, b, lo, hi;
}
""")


@triton.jit
def widened(codes, DTYPE: tl.constexpr):
    """The numbers of uint8 codes in DTYPE, exactly; bfloat16 on a device in few instructions."""
    if tl.bfloat16 == DTYPE and IS_COMPILED:
        wide = tl.inline_asm_elementwise(WIDEN_ASM, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        bits = codes.to(tl.uint32)
        bits = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        wide = (bits.to(tl.float32, bitcast=True) * 1.329227995784916e36).to(DTYPE)
    return wide


@triton.jit
def _quantize_rows_kernel(
    x_ptr, codes_ptr, scale_ptr, stride_x, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    """One program per row and, with groups, per GROUPS of them."""
    wait_for_prior_kernel(USE_PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    x = tl.load(x_ptr + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    grouped = tl.reshape(x, (GROUPS, BLOCK // GROUPS))
    scale = tl.maximum(tl.max(tl.abs(grouped), 1) / 448.0, 1e-12)
    codes = tl.reshape(grouped / scale[:, None], (BLOCK,))
    tl.store(codes_ptr + row * WIDTH + columns, codes.to(codes_ptr.dtype.element_ty), mask=mask)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    # Of the row; a block that is a whole row has one.
    groups = (WIDTH + BLOCK // GROUPS - 1) // (BLOCK // GROUPS)
    tl.store(scale_ptr + row * groups + group, scale, mask=group < groups)


def quantize_rows(x: torch.Tensor, *, grouped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return e4m3 codes [T, N] and fp32 scales of activations, each group's largest number being that of e4m3.

    x [T, N] with contiguous rows. A group is a whole row, with scales [T, 1], or GROUP columns, with scales
    [T, N / GROUP] rounded up. Raises ValueError for other layouts and for rows wider than 65536.
    """
    rows, width = x.shape
    if x.stride(1) != 1 or width > _MAX_WIDTH:
        raise ValueError(f"x {tuple(x.shape)} must have contiguous rows of at most {_MAX_WIDTH}")
    codes = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    block = 8 * GROUP if grouped else triton.next_power_of_2(width)
    scale = torch.empty((rows, -(-width // GROUP) if grouped else 1), dtype=torch.float32, device=x.device)
    if rows:
        _quantize_rows_kernel[(rows, triton.cdiv(width, block))](
            x, codes, scale, x.stride(0), WIDTH=width, BLOCK=block, GROUPS=8 if grouped else 1,
            num_warps=min(16, max(4, block // 1024)), **pdl_options(x.device),
        )  # fmt: skip
    return codes, scale


def quantize_rows_reference(x: torch.Tensor, *, grouped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """quantize_rows in plain torch, for widths that are multiples of GROUP."""
    rows, width = x.shape
    wide = x.float().view(rows, width // GROUP if grouped else 1, -1)
    scale = (wide.abs().amax(2) / LARGEST).clamp_min(1e-12)
    return (wide / scale[..., None]).view(rows, width).to(torch.float8_e4m3fn), scale
