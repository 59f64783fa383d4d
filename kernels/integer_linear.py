"""Linears on integers of 4 or 8 bits in groups, over few rows: the codes are streamed and made numbers beside the
product. For many rows the weight is dequantised once a product.

Of 4 bits, codes are [N, K / 2] uint8: of 32 columns byte i of 16 holds column i in its lower half and column i + 16 in
its upper one. Of 8 bits, codes are [N, K] int8. A number is (code - zero) * scale, with one scale and one zero [N, K /
group] for each group of columns; zero may be None. The difference is rounded to the type of the activations, which is
exact for whole zeros; products and sums, and the scale of a part's sum, are float32.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import launch_dependents, pdl_options, wait_for_prior_kernel
from kernels.skinny_tiles import MAX_ROWS, portable_splits
from kernels.tiles import SkinnyTile

LARGEST_BLOCK = 128
SMALLEST_BLOCK = {4: 32, 8: 16}
"""Columns below which a product on tensor cores is not made, by bits."""
# Bits of a number whose last place is 1, and the number: 128 in bfloat16, 1024 in float16.
_BASES = {torch.bfloat16: (0x4300, 128.0), torch.float16: (0x6400, 1024.0)}


@triton.jit
def _difference(codes, zero, BASE_BITS: tl.constexpr, BASE: tl.constexpr, HAS_ZERO: tl.constexpr, dtype: tl.constexpr):
    """Return codes - zero, codes [N, C] and zero [N]. Codes of 4 bits are put below the bits of BASE, which takes no
    conversion of an integer."""
    if BASE_BITS:
        number = (codes.to(tl.int16) | BASE_BITS).to(dtype, bitcast=True).to(tl.float32) - BASE
    else:
        number = codes.to(tl.float32)
    if HAS_ZERO:
        number -= zero.to(tl.float32)[:, None]
    return number.to(dtype)


@triton.jit(do_not_specialize=["rows"])
def _integer_linear_kernel(
    x_ptr, codes_ptr, scale_ptr, zero_ptr, bias_ptr, y_ptr, rows, width, depth, stride_x, stride_codes, stride_scale,
    stride_split, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    BASE_BITS: tl.constexpr, BASE: tl.constexpr, HAS_ZERO: tl.constexpr, BIASED: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    # depth: of this split, a multiple of BLOCK_K, which divides GROUP. With 4 bits a byte has the columns `lower` and
    # lower + 16.
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    PACK: tl.constexpr = 2 if BASE_BITS else 1
    split = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_K // PACK)
    column = c // 16 * 32 + c % 16 if BASE_BITS else c
    first = split * depth
    row_mask = m[None, :] < rows
    code_ptrs = codes_ptr + n[:, None].to(tl.int64) * stride_codes + first // PACK + c[None, :]
    parameters = n.to(tl.int64) * stride_scale
    x_ptrs = x_ptr + m[None, :] * stride_x + first + column[:, None]
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, depth, BLOCK_K):
        group = parameters + (first + start) // GROUP
        codes = tl.load(code_ptrs)
        scale = tl.load(scale_ptr + group).to(tl.float32)
        zero = tl.load(zero_ptr + group) if HAS_ZERO else scale
        x = tl.load(x_ptrs, mask=row_mask, other=0.0)
        if BASE_BITS:
            x_upper = tl.load(x_ptrs + 16, mask=row_mask, other=0.0)
            part = tl.dot(_difference(codes & 15, zero, BASE_BITS, BASE, HAS_ZERO, dtype), x)
            part = tl.dot(_difference(codes >> 4, zero, BASE_BITS, BASE, HAS_ZERO, dtype), x_upper, part)
        else:
            part = tl.dot(_difference(codes, zero, BASE_BITS, BASE, HAS_ZERO, dtype), x)
        acc += part * scale[:, None]
        code_ptrs += BLOCK_K // PACK
        x_ptrs += BLOCK_K
    launch_dependents(USE_PDL)
    if BIASED:
        acc += tl.load(bias_ptr + n).to(tl.float32)[:, None]
    y_ptrs = y_ptr + split.to(tl.int64) * stride_split + m[None, :] * width + n[:, None]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=row_mask)


def integer_linear(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, tile: SkinnyTile,
    bias: torch.Tensor | None = None, *, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return x W^T + b: [M, N] of x's dtype, or with tile.splits > 1 fp32 partial sums [splits, M, N], without b.

    x [M, K] of 16 bits with contiguous rows; codes [N, K / 2] uint8 or [N, K] int8, scale and zero [N, K / group], all
    contiguous. N is a multiple of block_n, K of block_k * splits, group of block_k. `out` is filled and returned.
    Raises ValueError for what does not fit.
    """
    rows, depth = x.shape
    width, groups = scale.shape
    bits = bits_of(codes)
    fits = codes.shape == (width, depth * bits // 8) and depth % groups == 0 and width % tile.block_n == 0
    if not fits or depth // groups % tile.block_k or depth % (tile.block_k * tile.splits):
        raise ValueError(f"x {tuple(x.shape)} and codes {tuple(codes.shape)} in {groups} groups do not fit {tile}")
    if x.stride(1) != 1 or not (codes.is_contiguous() and scale.is_contiguous()):
        raise ValueError("rows, codes and scales must be contiguous")
    if (zero is not None and zero.shape != scale.shape) or (tile.splits > 1 and bias is not None):
        raise ValueError("there is a zero for each scale; a bias takes one split")
    if out is None:
        shape = (rows, width) if tile.splits == 1 else (tile.splits, rows, width)
        out = torch.empty(shape, dtype=x.dtype if tile.splits == 1 else torch.float32, device=x.device)
    base_bits, base = _BASES[x.dtype] if bits == 4 else (0, 0.0)
    _integer_linear_kernel[(width // tile.block_n, tile.splits)](
        x, codes, scale, zero, bias, out, rows, width, depth // tile.splits, x.stride(0), codes.stride(0),
        scale.stride(0), rows * width, BLOCK_M=max(16, triton.next_power_of_2(rows)), BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k, GROUP=depth // groups, BASE_BITS=base_bits, BASE=base, HAS_ZERO=zero is not None,
        BIASED=bias is not None, num_warps=tile.warps, num_stages=tile.stages, **pdl_options(x.device),
    )  # fmt: skip
    return out


def integer_tile(form: str, codes: torch.Tensor, groups: int, x: torch.Tensor) -> SkinnyTile | None:
    """Return the tile of a linear over x [M, K], or None where no kernel takes it.

    Only `form` split_k makes partial sums. The rule is that of 16-bit weights on cards that are not Hopper's; nothing
    has been measured yet.
    """
    width, (rows, depth), bits = codes.shape[0], x.shape, bits_of(codes)
    size = depth // groups
    block_k = min(size & -size, LARGEST_BLOCK)
    if rows > MAX_ROWS or width % 64 or block_k < SMALLEST_BLOCK[bits] or x.dtype not in _BASES:
        return None
    splits = portable_splits(width, depth, rows) if form == "split_k" else 1
    while depth % (block_k * splits):
        splits //= 2
    return SkinnyTile(64, block_k, splits, 4, 4 if rows <= 32 else 3)


@triton.jit
def _dequantize_kernel(
    codes_ptr, scale_ptr, zero_ptr, out_ptr, width, columns, group, PACKED: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, HAS_ZERO: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    # A program makes BLOCK columns of ROWS rows.
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    k = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (row < width) & (k < columns)
    parameter = row * (columns // group) + k // group
    wait_for_prior_kernel(USE_PDL)
    if PACKED:
        pair = tl.load(codes_ptr + row * (columns // 2) + k // 32 * 16 + k % 16, mask=mask, other=0)
        codes = (pair >> (k % 32 // 16 * 4).to(tl.uint8)) & 15
    else:
        codes = tl.load(codes_ptr + row * columns + k, mask=mask, other=0)
    number = codes.to(tl.float32)
    if HAS_ZERO:
        number -= tl.load(zero_ptr + parameter, mask=mask, other=0.0).to(tl.float32)
    number *= tl.load(scale_ptr + parameter, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * columns + k, number.to(out_ptr.dtype.element_ty), mask=mask)


def dequantize_integers(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the numbers [N, K] of integer_linear's codes, rounded once to `dtype`."""
    width, groups = scale.shape
    columns = codes.shape[1] * 8 // bits_of(codes)
    out = torch.empty((width, columns), dtype=dtype, device=codes.device)
    _dequantize_kernel[(triton.cdiv(columns, 256), triton.cdiv(width, 16))](
        codes, scale, zero, out, width, columns, columns // groups, PACKED=bits_of(codes) == 4, ROWS=16, BLOCK=256,
        HAS_ZERO=zero is not None, **pdl_options(codes.device),
    )  # fmt: skip
    return out


def bits_of(codes: torch.Tensor) -> int:
    """Return the bits of a code: 4 of uint8, 8 of int8."""
    return 4 if codes.dtype == torch.uint8 else 8
