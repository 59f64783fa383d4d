"""Linears over few rows on FP8 weights: as kernels.skinny_linear, with codes that are made wide beside the product.

Products and sums are those of 16-bit activations, so nothing but the weight is rounded. A scale is of a weight row,
applied to its sum, or of a block of rows and SCALE_DEPTH columns, applied to the sum of that depth.
"""

import torch
import triton
import triton.language as tl

from kernels.fp8_numbers import widened
from kernels.pdl import launch_dependents, pdl_options, wait_for_prior_kernel
from kernels.skinny_fp8_hopper import ROWS, skinny_fp8_on_hopper
from kernels.skinny_linear import PREFETCH_BYTES, PREFETCH_PROGRAMS, prefetch_weights
from kernels.tiles import HopperTile, SkinnyTile, Tile

SCALE_DEPTH = 128


@triton.jit(do_not_specialize=["rows", "prefetched"])
def _skinny_fp8_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, rows, width, depth, stride_x, stride_w, stride_scale, stride_split,
    prefetched, ROW_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCKED: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr, THREADS: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    # width: outputs; depth: of this split. Gated: outputs n and width + n of the product make output n.
    split = tl.program_id(1)
    if USE_PDL:
        first = tl.program_id(0) * BLOCK_N
        prefetch_weights(w_ptr, first, split * depth, stride_w, prefetched, 1, BLOCK_N, THREADS)
        if GATED:
            prefetch_weights(w_ptr, first + width, split * depth, stride_w, prefetched, 1, BLOCK_N, THREADS)
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = split * depth + tl.arange(0, BLOCK_K)
    row_mask = m[None, :] < rows
    x_ptrs = x_ptr + m[None, :] * stride_x + k[:, None]
    w_ptrs = w_ptr + n[:, None].to(tl.int64) * stride_w + k[None, :]
    y_dtype = y_ptr.dtype.element_ty
    x_dtype: tl.constexpr = x_ptr.dtype.element_ty
    scale_ptrs = scale_ptr + (n // ROW_SIZE).to(tl.int64) * stride_scale
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    other = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up_ptrs = w_ptrs
    up_scale_ptrs = scale_ptrs
    if GATED:
        up_ptrs += width.to(tl.int64) * stride_w
        up_scale_ptrs = scale_ptr + ((n + width) // ROW_SIZE).to(tl.int64) * stride_scale
    if BLOCKED:
        scale_ptrs += split * (depth // BLOCK_K)
        up_scale_ptrs += split * (depth // BLOCK_K)
    for _ in range(0, depth, BLOCK_K):
        x = tl.load(x_ptrs, mask=row_mask, other=0.0)
        w = widened(tl.load(w_ptrs), x_dtype)
        if BLOCKED:
            acc += tl.dot(w, x) * tl.load(scale_ptrs)[:, None]
        else:
            acc = tl.dot(w, x, acc)
        if GATED:
            w_up = widened(tl.load(up_ptrs), x_dtype)
            if BLOCKED:
                other += tl.dot(w_up, x) * tl.load(up_scale_ptrs)[:, None]
            else:
                other = tl.dot(w_up, x, other)
            up_ptrs += BLOCK_K
            up_scale_ptrs += 1
        w_ptrs += BLOCK_K
        x_ptrs += BLOCK_K
        scale_ptrs += 1
    launch_dependents(USE_PDL)
    if not BLOCKED:
        acc *= tl.load(scale_ptr + n // ROW_SIZE)[:, None]
    if GATED:
        if not BLOCKED:
            other *= tl.load(scale_ptr + (n + width) // ROW_SIZE)[:, None]
        gate = acc.to(y_dtype).to(tl.float32)
        up = other.to(y_dtype).to(tl.float32)
        acc = (gate / (1.0 + tl.exp(-gate))).to(y_dtype).to(tl.float32) * up
    if BIASED:
        acc += tl.load(bias_ptr + n).to(tl.float32)[:, None]
    y_ptrs = y_ptr + split.to(tl.int64) * stride_split + m[None, :] * width + n[:, None]
    tl.store(y_ptrs, acc.to(y_dtype), mask=row_mask)


def skinny_fp8(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, tile: Tile, bias: torch.Tensor | None = None, *,
    gated: bool = False, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return x W^T + b: [M, N] of x's dtype, or with tile.splits > 1 fp32 partial sums [splits, M, N].

    x [M, K] of 16 bits, codes [N, K] e4m3 (gated: [2 N, K], the gate first), both with contiguous rows; K a multiple of
    block_k * splits, N of block_n. scale fp32, contiguous: [N, 1] of rows, or of blocks of SCALE_DEPTH columns and of
    one row or SCALE_DEPTH rows, [N or N / SCALE_DEPTH, K / SCALE_DEPTH]; then block_k is SCALE_DEPTH. A bias needs one
    split and no gate. `out`: contiguous, filled and returned. Raises ValueError for what does not fit.
    """
    rows, depth = x.shape
    width = codes.shape[0] // 2 if gated else codes.shape[0]
    block_n = tile.block_n if isinstance(tile, SkinnyTile) else ROWS
    if codes.shape[1] != depth or depth % (tile.block_k * tile.splits) or width % block_n:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(codes.shape)} do not fit {tile}")
    if x.stride(1) != 1 or codes.stride(1) != 1 or (tile.splits > 1 and (gated or bias is not None)):
        raise ValueError("rows must be contiguous; a gate or a bias takes one split")
    is_blocked, row_size = scale.shape[1] > 1, codes.shape[0] // scale.shape[0]
    fits = scale.shape[1] == depth // SCALE_DEPTH and tile.block_k == SCALE_DEPTH and row_size in (1, SCALE_DEPTH)
    if not scale.is_contiguous() or not (fits if is_blocked else scale.shape == (codes.shape[0], 1)):
        raise ValueError(f"scales {tuple(scale.shape)} do not fit a weight {tuple(codes.shape)} and {tile}")
    if out is None:
        shape = (rows, width) if tile.splits == 1 else (tile.splits, rows, width)
        out = torch.empty(shape, dtype=x.dtype if tile.splits == 1 else torch.float32, device=x.device)
    if isinstance(tile, HopperTile):
        skinny_fp8_on_hopper(x, codes, scale, bias, out, gated=gated, **tile._asdict())
        return out
    grid = (width // tile.block_n, tile.splits)
    part = depth // tile.splits
    _skinny_fp8_kernel[grid](
        x, codes.view(torch.uint8), scale, bias, out, rows, width, part, x.stride(0), codes.stride(0), scale.stride(0),
        rows * width, _prefetch_columns(tile, part, grid[0] * grid[1], 2 if gated else 1), ROW_SIZE=row_size,
        BLOCK_M=max(16, triton.next_power_of_2(rows)), BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, BLOCKED=is_blocked,
        GATED=gated, BIASED=bias is not None,
        THREADS=32 * tile.warps, num_warps=tile.warps, num_stages=tile.stages, **pdl_options(x.device),
    )  # fmt: skip
    return out


def _prefetch_columns(tile: SkinnyTile, depth: int, programs: int, weights: int) -> int:
    """Return the bytes of each weight row that a program prefetches: a multiple of 16 for each piece of the row."""
    rows = min(programs, PREFETCH_PROGRAMS) * tile.block_n * weights
    step = 16 * max(1, 32 * tile.warps // tile.block_n)
    return min(depth, PREFETCH_BYTES // rows) // step * step


def skinny_fp8_reference(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None, *, gated: bool = False
) -> torch.Tensor:
    """skinny_fp8 with one split, in plain torch: fp32 maths (fp64 for fp64 inputs)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    spread = scale.repeat_interleave(codes.shape[0] // scale.shape[0], 0)
    spread = spread.repeat_interleave(codes.shape[1] // scale.shape[1], 1)
    product = x.to(wide) @ (codes.to(wide) * spread.to(wide)).T
    if bias is not None:
        product += bias.to(wide)
    if not gated:
        return product.to(x.dtype)
    gate, up = product.to(x.dtype).chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up
