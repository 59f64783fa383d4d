"""RMS norm of rows, plain and after a residual addition.

One program per row, so a row's bits depend on that row alone. Rounding follows the Hugging Face models: the normalised
value is rounded to the model dtype, then multiplied by the weight; the residual is rounded before it is normalised, so
that the stored residual is exactly what was normalised.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

MAX_WIDTH = 65536


@triton.jit(do_not_specialize=["stride_split"])
def _rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, sum_ptr, stride_x, stride_residual, eps,
    stride_split, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, SPLITS: tl.constexpr,
    USE_PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    model_dtype = y_ptr.dtype.element_ty
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    wait_for_prior_kernel(USE_PDL)
    x = tl.load(x_ptr + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    if SPLITS > 1:
        for split in tl.static_range(1, SPLITS):
            x += tl.load(x_ptr + split * stride_split + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
        x = x.to(model_dtype).to(tl.float32)
    if ADD:
        residual = tl.load(residual_ptr + row * stride_residual + columns, mask=mask, other=0.0).to(tl.float32)
        rounded = (x + residual).to(model_dtype)
        tl.store(sum_ptr + row * WIDTH + columns, rounded, mask=mask)
        x = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    normalised = (x * inverse).to(model_dtype).to(tl.float32)
    tl.store(y_ptr + row * WIDTH + columns, (normalised * weight).to(model_dtype), mask=mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight as a fresh [T, N] tensor of x's dtype.

    x [T, N] fp32/fp16/bf16 with contiguous rows, weight [N]; fp32 maths. Raises ValueError for other shapes.
    """
    return _launch(x, None, weight, eps)[0]


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """rms_norm in plain torch: fp32 maths (fp64 for fp64 inputs) and the same two roundings."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normalised.to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (rms_norm(x + residual), x + residual), both fresh [T, N] tensors of x's dtype; the inputs stay unchanged.

    x and residual [T, N] of one dtype with contiguous rows, weight [N]. The sum is rounded to that dtype, then
    normalised. x may also be [splits, T, N], fp32 or of that dtype: split-K partial sums or what each expert adds,
    which are added in order in fp32 and rounded to the residual's dtype first. Raises ValueError for other shapes.
    """
    return _launch(x, residual, weight, eps)


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """add_rms_norm in plain torch."""
    if x.dim() == 3:
        x = x.sum(0, dtype=torch.float32).to(residual.dtype)
    new_residual = x + residual
    return rms_norm_reference(new_residual, weight, eps), new_residual


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = x.shape[-2:]
    splits = x.shape[0] if x.dim() == 3 else 1
    other = x if residual is None else residual
    dtypes = (torch.float32, other.dtype) if x.dim() == 3 else (other.dtype,)
    if weight.shape != (width,) or other.shape != (rows, width) or x.dtype not in dtypes or width > MAX_WIDTH:
        raise ValueError(f"x {tuple(x.shape)}, residual {tuple(other.shape)}, weight {tuple(weight.shape)} do not fit")
    if x.stride(-1) != 1 or other.stride(1) != 1 or weight.stride(0) != 1:
        raise ValueError("rows of x and the residual, and the weight, must be contiguous")
    y = torch.empty((rows, width), dtype=other.dtype, device=x.device)
    new_residual = y if residual is None else torch.empty((rows, width), dtype=other.dtype, device=x.device)
    if rows:
        block = triton.next_power_of_2(width)
        _rms_norm_kernel[(rows,)](
            x, other, weight, y, new_residual, x.stride(-2), other.stride(0), eps, x.stride(0) if splits > 1 else 0,
            WIDTH=width, BLOCK=block, ADD=residual is not None, SPLITS=splits,
            num_warps=min(16, max(4, block // 1024)), **pdl_options(x.device),
        )  # fmt: skip
    return y, new_residual
