"""The product of one tile of an expert's linear: plain weights as left or right operand, or MXFP4 as the left one.

Called by the kernels of kernels.expert_linear.
"""

import triton
import triton.language as tl

from kernels.mxfp4 import mxfp4_numbers


@triton.jit
def _product(
    x_ptr, rows_of_x, w_ptr, first_row, width, depth, stride_x, is_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr, WEIGHT_FIRST: tl.constexpr,
):  # fmt: skip
    """Return x W^T of a tile, [BLOCK_N, BLOCK_M] with the weight as left operand, else [BLOCK_M, BLOCK_N]."""
    k = tl.arange(0, BLOCK_K)
    # Rows behind the last one are read as the last one, and their results are not stored.
    n = tl.minimum(first_row + tl.arange(0, BLOCK_N), width - 1)
    x_at, w_at = rows_of_x.to(tl.int64) * stride_x, n.to(tl.int64) * depth
    if WEIGHT_FIRST:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        w_ptrs, x_ptrs = w_ptr + w_at[:, None] + k[None, :], x_ptr + x_at[None, :] + k[:, None]
        for at in range(0, depth, BLOCK_K):
            if EVEN:
                w = tl.load(w_ptrs)
                x = tl.load(x_ptrs, mask=is_row[None, :], other=0.0)
            else:
                inside = k < depth - at
                w = tl.load(w_ptrs, mask=inside[None, :], other=0.0)
                x = tl.load(x_ptrs, mask=is_row[None, :] & inside[:, None], other=0.0)
            acc = tl.dot(w, x, acc, input_precision="ieee")
            w_ptrs += BLOCK_K
            x_ptrs += BLOCK_K
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        w_ptrs, x_ptrs = w_ptr + w_at[None, :] + k[:, None], x_ptr + x_at[:, None] + k[None, :]
        for at in range(0, depth, BLOCK_K):
            if EVEN:
                w = tl.load(w_ptrs)
                x = tl.load(x_ptrs, mask=is_row[:, None], other=0.0)
            else:
                inside = k < depth - at
                w = tl.load(w_ptrs, mask=inside[:, None], other=0.0)
                x = tl.load(x_ptrs, mask=is_row[:, None] & inside[None, :], other=0.0)
            acc = tl.dot(x, w, acc, input_precision="ieee")
            w_ptrs += BLOCK_K
            x_ptrs += BLOCK_K
    return acc


@triton.jit
def _product_of_mxfp4(
    x_ptr, rows_of_x, w_ptr, scales_ptr, first_row, width, depth, stride_x, is_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Return what _product does with the weight as left operand, made of codes and scales."""
    k, pair, group = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2), tl.arange(0, BLOCK_K // 32)
    n = tl.minimum(first_row + tl.arange(0, BLOCK_N), width - 1).to(tl.int64)[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    w_ptrs, scale_ptrs = w_ptr + n * (depth // 2) + pair[None, :], scales_ptr + n * (depth // 32) + group[None, :]
    x_ptrs = x_ptr + rows_of_x.to(tl.int64)[None, :] * stride_x + k[:, None]
    # A row's scales of a tile are too few bytes for an asynchronous copy: they are loaded a tile ahead.
    scales = tl.load(scale_ptrs, mask=(group < depth // 32)[None, :], other=0)
    for at in range(0, depth, BLOCK_K):
        scale_ptrs += BLOCK_K // 32
        following = tl.load(scale_ptrs, mask=(group < (depth - at - BLOCK_K) // 32)[None, :], other=0)
        if EVEN:
            codes = tl.load(w_ptrs)
            x = tl.load(x_ptrs, mask=is_row[None, :], other=0.0)
        else:
            codes = tl.load(w_ptrs, mask=(pair < (depth - at) // 2)[None, :], other=0)
            x = tl.load(x_ptrs, mask=is_row[None, :] & (k < depth - at)[:, None], other=0.0)
        w = mxfp4_numbers(codes, scales, BLOCK_N, BLOCK_K, x.dtype)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        scales = following
        w_ptrs += BLOCK_K // 2
        x_ptrs += BLOCK_K
    return acc


@triton.jit
def tile_product(
    x_ptr, rows_of_x, w_ptr, scales_ptr, bias_ptr, before, first_row, width, depth, stride_x, is_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    WEIGHT_FIRST: tl.constexpr, MXFP4: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Return x W^T + b of a tile, [BLOCK_N, BLOCK_M] with the weight as left operand, else [BLOCK_M, BLOCK_N].

    `before` are the weight rows of earlier experts, `width` those of one, of which the tile's begin at `first_row`.
    Row m of x is rows_of_x[m], and is there if is_row[m]."""
    if MXFP4:
        acc = _product_of_mxfp4(
            x_ptr, rows_of_x, w_ptr + before * (depth // 2), scales_ptr + before * (depth // 32), first_row, width,
            depth, stride_x, is_row, BLOCK_M, BLOCK_N, BLOCK_K, EVEN,
        )  # fmt: skip
    else:
        acc = _product(
            x_ptr, rows_of_x, w_ptr + before * depth, first_row, width, depth, stride_x, is_row,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN, WEIGHT_FIRST,
        )  # fmt: skip
    if BIASED:
        n = tl.minimum(first_row + tl.arange(0, BLOCK_N), width - 1)
        bias = tl.load(bias_ptr + before + n).to(tl.float32)
        acc += bias[:, None] if WEIGHT_FIRST else bias[None, :]
    return acc
