"""The gated activation of a feed-forward block: SiLU or GELU of the first half times the second half; and the gate on
the output of attention.

Rounding follows the Hugging Face models: the activation is rounded to the model dtype before the product. GELU is its
approximation by tanh.
"""

import torch
import triton
import triton.language as tl

from kernels.pdl import pdl_options, wait_for_prior_kernel

BLOCK = 1024


@triton.jit
def _gated_kernel(
    x_ptr, y_ptr, stride_x, WIDTH: tl.constexpr, BLOCK: tl.constexpr, USE_PDL: tl.constexpr, IS_SILU: tl.constexpr
):
    wait_for_prior_kernel(USE_PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    model_dtype = y_ptr.dtype.element_ty
    gate = tl.load(x_ptr + row * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    # GELU by tanh is x * sigmoid(2 u) with u = sqrt(2 / pi) * (x + 0.044715 x^3).
    inner = gate if IS_SILU else 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    activated = (gate / (1.0 + tl.exp(-inner))).to(model_dtype).to(tl.float32)
    tl.store(y_ptr + row * WIDTH + columns, (activated * up).to(model_dtype), mask=mask)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up as a fresh [T, I] tensor of the input's dtype, fp32 maths.

    gate_up [T, 2 * I] fp32/fp16/bf16 with contiguous rows, the gate in the first half. Raises ValueError otherwise.
    """
    return _launch(gate_up, is_silu=True)


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return gelu(gate) * up; see silu_mul."""
    return _launch(gate_up, is_silu=False)


def gelu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gelu_mul in plain torch."""
    _, width = _halves(gate_up)
    return torch.nn.functional.gelu(gate_up[:, :width], approximate="tanh") * gate_up[:, width:]


def _launch(gate_up: torch.Tensor, is_silu: bool) -> torch.Tensor:
    rows, width = _halves(gate_up)
    y = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = (rows, triton.cdiv(width, BLOCK))
        options = {"IS_SILU": is_silu, "num_warps": 4, **pdl_options(gate_up.device)}
        _gated_kernel[grid](gate_up, y, gate_up.stride(0), WIDTH=width, BLOCK=BLOCK, **options)
    return y


@triton.jit
def _sigmoid_mul_kernel(
    x_ptr, gate_ptr, y_ptr, stride_gate, WIDTH: tl.constexpr, BLOCK: tl.constexpr, USE_PDL: tl.constexpr
):
    wait_for_prior_kernel(USE_PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    model_dtype = y_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + row * stride_gate + columns, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    sigmoid = (1.0 / (1.0 + tl.exp(-gate))).to(model_dtype).to(tl.float32)
    tl.store(y_ptr + row * WIDTH + columns, (x * sigmoid).to(model_dtype), mask=mask)


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Return x * sigmoid(gate) as a fresh [T, N] tensor of the inputs' dtype, fp32 maths.

    x [T, N] contiguous, gate [T, N] with contiguous rows, of one dtype. Raises ValueError otherwise."""
    rows, width = x.shape
    if gate.shape != x.shape or gate.stride(1) != 1 or not x.is_contiguous():
        raise ValueError(f"x {tuple(x.shape)} and gate {tuple(gate.shape)} need one shape and contiguous rows")
    y = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if rows:
        grid = (rows, triton.cdiv(width, BLOCK))
        options = pdl_options(x.device)
        _sigmoid_mul_kernel[grid](x, gate, y, gate.stride(0), WIDTH=width, BLOCK=BLOCK, num_warps=4, **options)
    return y


def sigmoid_mul_reference(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """sigmoid_mul in plain torch."""
    return x * torch.sigmoid(gate)


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """silu_mul in plain torch."""
    _, width = _halves(gate_up)
    return torch.nn.functional.silu(gate_up[:, :width]) * gate_up[:, width:]


def _halves(gate_up: torch.Tensor) -> tuple[int, int]:
    rows, double = gate_up.shape
    if double % 2 or gate_up.stride(1) != 1:
        raise ValueError(f"gate_up {tuple(gate_up.shape)} needs an even width and contiguous rows")
    return rows, double // 2
