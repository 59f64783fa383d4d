"""Linears whose rows have the same bits whatever their number: for --deterministic.

A row's result is defined by the weight alone. Its depth is cut into equal splits; the products of a split are added to
one accumulator in the order of the depth, and the splits are added to one another in their order, all in fp32. Which
tile computes a row, and whether a program computes one split or all of them, changes no bits: the accumulator of an
element is fed the same numbers by the same instruction, 16 of the depth at a time. He, "Defeating Nondeterminism in LLM
Inference" (Thinking Machines, 2025), names what is to be kept fixed.

For few rows, which are bound by reading the weight, programs are many: narrow tiles, and a program for each split,
whose partial sums the consumer adds (kernels.norm.add_rms_norm). For many rows a wide tile, whose programs add the
splits in registers.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.paged_tile import dot_precision
from kernels.pdl import launch_dependents, pdl_options, wait_for_prior_kernel


class LinearTile(NamedTuple):
    """Launch parameters: rows of x, rows of the weight and depth of a tile, warps, pipeline stages."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


FEW_ROWS = 64
# The first for up to FEW_ROWS rows. fp32 has no tensor cores here, whose one tile is small.
TILES = LinearTile(64, 64, 64, 4, 4), LinearTile(128, 128, 64, 8, 3)
FP32_TILES = LinearTile(16, 32, 32, 4, 2), LinearTile(32, 32, 32, 4, 2)
# Programs of a narrow linear over few rows for which its depth is split, and the least depth of a split.
MIN_PROGRAMS, MIN_SPLIT_DEPTH, MAX_SPLITS = 128, 1024, 4


def tiles_of(dtype: torch.dtype) -> tuple[LinearTile, LinearTile]:
    """Return the tiles for few rows and for many."""
    return FP32_TILES if dtype == torch.float32 else TILES


def linear_tile(dtype: torch.dtype, rows: int) -> LinearTile:
    """Return the tile for so many rows."""
    return tiles_of(dtype)[rows > FEW_ROWS]


def splits_of(width: int, depth: int) -> int:
    """Return the splits of a weight [width, depth], which define its results: of its sizes alone."""
    splits = 1
    while splits < MAX_SPLITS and width // TILES[0].block_n * splits < MIN_PROGRAMS:
        if depth % (2 * splits * TILES[0].block_k) or depth // (2 * splits) < MIN_SPLIT_DEPTH:
            break
        splits *= 2
    return splits


@triton.jit(do_not_specialize=["rows", "stride_split"])
def _linear_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, rows, width, depth, stride_x, stride_w, stride_y, stride_split,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, PARTIAL: tl.constexpr,
    BIASED: tl.constexpr, EVEN_N: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    """PARTIAL: a program computes one of SPLITS splits, and stores its partial sums; otherwise all."""
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    # Programs that read the same rows of the weight run side by side.
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    row_mask, column_mask = m < rows, n < width
    split_depth = depth // SPLITS
    first = tl.program_id(2) if PARTIAL else 0
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for split in range(first, first + 1 if PARTIAL else SPLITS):
        x_ptrs = x_ptr + m[:, None] * stride_x + (split * split_depth + k)[None, :]
        w_ptrs = w_ptr + n[None, :] * stride_w + (split * split_depth + k)[:, None]
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, split_depth, BLOCK_K):
            if EVEN_K:
                x = tl.load(x_ptrs, mask=row_mask[:, None], other=0.0)
            else:
                x = tl.load(x_ptrs, mask=row_mask[:, None] & (start + k < split_depth)[None, :], other=0.0)
            if EVEN_N and EVEN_K:
                w = tl.load(w_ptrs)
            else:
                w = tl.load(w_ptrs, mask=column_mask[None, :] & (start + k < split_depth)[:, None], other=0.0)
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
            x_ptrs += BLOCK_K
            w_ptrs += BLOCK_K
        sums += acc
    launch_dependents(USE_PDL)
    if BIASED:
        sums += tl.load(bias_ptr + n, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    y_ptrs = y_ptr + first.to(tl.int64) * stride_split if PARTIAL else y_ptr
    y_ptrs += m[:, None] * stride_y + n[None, :]
    tl.store(y_ptrs, sums.to(y_ptr.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :])


def invariant_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, partial: bool = False,
    out: torch.Tensor | None = None, tile: LinearTile | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return x W^T + b [M, N] of x's dtype; with `partial` and few rows, fp32 partial sums [splits, M, N], to be added
    in order and rounded, where the weight is split.

    x [M, K] and weight [N, K] fp32/fp16/bf16 of one dtype with contiguous rows, bias [N]. `out` [M, N], with contiguous
    rows, is filled and returned. `tile`: for tests; None takes linear_tile. A row's bits depend on x's row, weight and
    bias alone. Raises ValueError for shapes and layouts that do not fit.
    """
    (rows, depth), width = x.shape, weight.shape[0]
    if weight.shape[1] != depth or x.dtype != weight.dtype or x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError(f"x {tuple(x.shape)} {x.dtype} and weight {tuple(weight.shape)} {weight.dtype} do not fit")
    if partial and bias is not None:
        raise ValueError("partial sums have no bias")
    tile, splits = tile or linear_tile(x.dtype, rows), splits_of(width, depth)
    is_cut = partial and splits > 1 and rows <= FEW_ROWS
    if out is None:
        shape = (splits, rows, width) if is_cut else (rows, width)
        out = torch.empty(shape, dtype=torch.float32 if is_cut else x.dtype, device=x.device)
    if not rows:
        return out
    grid = triton.cdiv(rows, tile.block_m), triton.cdiv(width, tile.block_n), splits if is_cut else 1
    _linear_kernel[grid](
        x, weight, bias, out, rows, width, depth, x.stride(0), weight.stride(0), out.stride(-2),
        out.stride(0) if is_cut else 0, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SPLITS=splits,
        PARTIAL=is_cut, BIASED=bias is not None, EVEN_N=width % tile.block_n == 0,
        EVEN_K=depth % (splits * tile.block_k) == 0, PRECISION=dot_precision(x.dtype), num_warps=tile.warps,
        num_stages=tile.stages, **pdl_options(x.device),
    )  # fmt: skip
    return out
