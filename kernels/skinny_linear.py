"""Linears over few rows, which are bound by reading the weight: tiles of weight rows stream past the activations.

The weight is the left operand of the product, so that its rows fill the tensor core tile and the few activations its
narrow side. With `splits` above 1 (split-K) the depth is cut into equal parts whose fp32 partial results are stored
side by side, and the consumer adds them in order; with 1 the result is rounded and stored. The gated form computes
silu(gate) * up.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import launch_dependents, pdl_options, prefetch_to_l2, wait_for_prior_kernel
from kernels.skinny_hopper import ROWS, skinny_on_hopper
from kernels.tiles import HopperTile, SkinnyTile, Tile

# Bytes that a launch prefetches into the L2 cache (50 MB) while its predecessor runs.
PREFETCH_BYTES = 16 << 20
# Programs that can be resident at that time: about three per multiprocessor.
PREFETCH_PROGRAMS = 396


@triton.jit
def prefetch_weights(
    w_ptr, first_row, first_column, stride_w, columns, ITEM_BYTES: tl.constexpr, BLOCK_N: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    """Prefetch the first `columns` of the program's BLOCK_N weight rows, each row in THREADS / BLOCK_N pieces."""
    PIECES: tl.constexpr = THREADS // BLOCK_N
    thread = tl.arange(0, THREADS)
    piece = columns // PIECES
    row = first_row + thread // PIECES
    pointers = w_ptr + row.to(tl.int64) * stride_w + first_column + thread % PIECES * piece
    prefetch_to_l2(pointers, tl.zeros_like(thread) + piece * ITEM_BYTES)


@triton.jit
def _product(x_ptrs, w_ptrs, row_mask, depth, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for _ in range(0, depth, BLOCK_K):
        w = tl.load(w_ptrs)
        x = tl.load(x_ptrs, mask=row_mask, other=0.0)
        acc = tl.dot(w, x, acc)
        w_ptrs += BLOCK_K
        x_ptrs += BLOCK_K
    return acc


@triton.jit(do_not_specialize=["rows", "prefetched"])
def _skinny_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, rows, width, depth, stride_x, stride_w, stride_split, prefetched,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr,
    THREADS: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    # width: outputs; depth: of this split. Gated: outputs n and width + n of the product make output n.
    split = tl.program_id(1)
    if USE_PDL:
        first = tl.program_id(0) * BLOCK_N
        prefetch_weights(w_ptr, first, split * depth, stride_w, prefetched, 2, BLOCK_N, THREADS)
        if GATED:
            prefetch_weights(w_ptr, first + width, split * depth, stride_w, prefetched, 2, BLOCK_N, THREADS)
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    k = split * depth + tl.arange(0, BLOCK_K)
    row_mask = m[None, :] < rows
    x_ptrs = x_ptr + m[None, :] * stride_x + k[:, None]
    w_ptrs = w_ptr + n[:, None].to(tl.int64) * stride_w + k[None, :]
    y_dtype = y_ptr.dtype.element_ty
    if GATED:
        gate = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        up_ptrs = w_ptrs + width.to(tl.int64) * stride_w
        for _ in range(0, depth, BLOCK_K):
            w_gate = tl.load(w_ptrs)
            w_up = tl.load(up_ptrs)
            x = tl.load(x_ptrs, mask=row_mask, other=0.0)
            gate = tl.dot(w_gate, x, gate)
            up = tl.dot(w_up, x, up)
            w_ptrs += BLOCK_K
            up_ptrs += BLOCK_K
            x_ptrs += BLOCK_K
        gate = gate.to(y_dtype).to(tl.float32)
        up = up.to(y_dtype).to(tl.float32)
        acc = (gate / (1.0 + tl.exp(-gate))).to(y_dtype).to(tl.float32) * up
    else:
        acc = _product(x_ptrs, w_ptrs, row_mask, depth, BLOCK_N, BLOCK_M, BLOCK_K)
    launch_dependents(USE_PDL)
    if BIASED:
        acc += tl.load(bias_ptr + n).to(tl.float32)[:, None]
    y_ptrs = y_ptr + split.to(tl.int64) * stride_split + m[None, :] * width + n[:, None]
    tl.store(y_ptrs, acc.to(y_dtype), mask=row_mask)


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, tile: Tile, bias: torch.Tensor | None = None, *,
    gated: bool = False, out: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return x W^T + b: [M, N] of x's dtype, or with tile.splits > 1 fp32 partial sums [splits, M, N].

    x [M, K] and weight [N, K] (gated: [2 N, K], the gate first) of one 16-bit dtype with contiguous rows; K a multiple
    of block_k * splits, N of block_n. A bias needs one split and no gate. `out`: contiguous, filled and returned.
    Raises ValueError for shapes and layouts that do not fit.
    """
    rows, depth = x.shape
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    block_n = tile.block_n if isinstance(tile, SkinnyTile) else ROWS
    if weight.shape[1] != depth or depth % (tile.block_k * tile.splits) or width % block_n:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit {tile}")
    if x.stride(1) != 1 or weight.stride(1) != 1 or (tile.splits > 1 and (gated or bias is not None)):
        raise ValueError("rows must be contiguous; a gate or a bias takes one split")
    if out is None:
        shape = (rows, width) if tile.splits == 1 else (tile.splits, rows, width)
        out = torch.empty(shape, dtype=x.dtype if tile.splits == 1 else torch.float32, device=x.device)
    if isinstance(tile, HopperTile):
        skinny_on_hopper(x, weight, bias, out, gated=gated, **tile._asdict())
        return out
    block_m = max(16, triton.next_power_of_2(rows))
    grid = (width // tile.block_n, tile.splits)
    prefetched = _prefetch_columns(tile, depth // tile.splits, grid[0] * grid[1], 2 if gated else 1)
    _skinny_kernel[grid](
        x, weight, bias, out, rows, width, depth // tile.splits, x.stride(0), weight.stride(0), rows * width,
        prefetched, BLOCK_M=block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GATED=gated, BIASED=bias is not None,
        THREADS=32 * tile.warps, num_warps=tile.warps, num_stages=tile.stages, **pdl_options(x.device),
    )  # fmt: skip
    return out


def _prefetch_columns(tile: SkinnyTile, depth: int, programs: int, weights: int) -> int:
    """Return the elements of each weight row that a program prefetches: a multiple of 8 for each piece of the row."""
    rows = min(programs, PREFETCH_PROGRAMS) * tile.block_n * weights
    step = 8 * max(1, 32 * tile.warps // tile.block_n)
    return min(depth, PREFETCH_BYTES // 2 // rows) // step * step


def skinny_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, gated: bool = False
) -> torch.Tensor:
    """skinny_linear with one split, in plain torch: fp32 maths (fp64 for fp64 inputs)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    product = x.to(wide) @ weight.to(wide).T
    if bias is not None:
        product += bias.to(wide)
    if not gated:
        return product.to(x.dtype)
    gate, up = product.to(x.dtype).chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up
