"""Product of FP8 activations and FP8 weights whose scales are of groups of 128 columns: the linear of many rows.

Tensor cores sum the 128 products of a group with fewer bits than fp32 has; the scaled sums are added in fp32.
Programs that run at once share rows of x and of the weight: the grid goes through GROUP_M blocks of rows before it
takes the next block of weight rows.
"""

import torch
import triton
import triton.language as tl

from kernels.fp8_numbers import GROUP
from kernels.pdl import launch_dependents, pdl_options, wait_for_prior_kernel

BLOCK_M, BLOCK_N, GROUP_M = 128, 128, 8


@triton.jit(do_not_specialize=["rows"])
def _gemm_fp8_blocks_kernel(
    x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, rows, width, depth, groups,
    ROW_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, USE_PDL: tl.constexpr,
):  # fmt: skip
    wait_for_prior_kernel(USE_PDL, HOLD_DEPENDENTS=True)
    blocks_m, blocks_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(width, BLOCK_N)
    program = tl.program_id(0)
    group_m = program // (GROUP_M * blocks_n) * GROUP_M
    high = tl.minimum(blocks_m - group_m, GROUP_M)
    inside = program % (GROUP_M * blocks_n)
    m = (group_m + inside % high) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_n = inside // high * BLOCK_N
    n = first_n + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows beyond the last repeat it; what they give is not stored.
    row_m, row_n = tl.minimum(m, rows - 1), tl.minimum(n, width - 1)
    x_ptrs = x_ptr + row_m[:, None].to(tl.int64) * depth + k[None, :]
    w_ptrs = w_ptr + row_n[None, :].to(tl.int64) * depth + k[:, None]
    x_scale_ptrs = x_scale_ptr + row_m * groups
    if ROW_SIZE == BLOCK_N:
        w_scale_ptrs = w_scale_ptr + first_n // ROW_SIZE * groups
    else:
        w_scale_ptrs = w_scale_ptr + row_n // ROW_SIZE * groups
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(groups):
        x, w = tl.load(x_ptrs), tl.load(w_ptrs)
        x_scale, w_scale = tl.load(x_scale_ptrs + group), tl.load(w_scale_ptrs + group)
        part = tl.dot(x, w)
        if ROW_SIZE == BLOCK_N:
            acc += part * (x_scale * w_scale)[:, None]
        else:
            acc += part * x_scale[:, None] * w_scale[None, :]
        x_ptrs += BLOCK_K
        w_ptrs += BLOCK_K
    launch_dependents(USE_PDL)
    y_ptrs = y_ptr + m[:, None].to(tl.int64) * width + n[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=(m[:, None] < rows) & (n[None, :] < width))


def gemm_fp8_blocks(
    x: torch.Tensor, x_scale: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return x W^T [M, N] in dtype.

    x [M, K] and codes [N, K] e4m3, x_scale [M, K / 128] and scale [N, K / 128] or [N / 128, K / 128] fp32, all
    contiguous; K a multiple of 128. Raises ValueError for what does not fit.
    """
    (rows, depth), width = x.shape, codes.shape[0]
    groups = depth // GROUP
    if depth % GROUP or codes.shape[1] != depth or x_scale.shape != (rows, groups) or scale.shape[1] != groups:
        raise ValueError(f"x {tuple(x.shape)}, weight {tuple(codes.shape)} and their scales do not fit")
    if scale.shape[0] * GROUP != width and scale.shape[0] != width:
        raise ValueError(f"scales {tuple(scale.shape)} do not fit a weight {tuple(codes.shape)}")
    if not (x.is_contiguous() and codes.is_contiguous() and x_scale.is_contiguous() and scale.is_contiguous()):
        raise ValueError("x, weight and scales must be contiguous")
    y = torch.empty((rows, width), dtype=dtype, device=x.device)
    if rows:
        grid = (triton.cdiv(rows, BLOCK_M) * triton.cdiv(width, BLOCK_N),)
        _gemm_fp8_blocks_kernel[grid](
            x, x_scale, codes, scale, y, rows, width, depth, groups, ROW_SIZE=width // scale.shape[0], BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N, BLOCK_K=GROUP, GROUP_M=GROUP_M, num_warps=8, num_stages=4, **pdl_options(x.device),
        )  # fmt: skip
    return y
