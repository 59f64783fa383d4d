"""The repairs of the interpreter themselves: without them, the bfloat16 tests here would prove nothing."""

import kernel_cases as cases
import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import BF16, FP16, FP32

pytestmark = pytest.mark.skipif(cases.ON_GPU, reason="no interpreter in use")


@triton.jit
def _copy_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets).to(tl.float32).to(y_ptr.dtype.element_ty))


@triton.jit
def _dot_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + offsets)
    tl.store(y_ptr + offsets, tl.dot(x, x))


@triton.jit
def _add_kernel(x_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(x_ptr + offsets, x + x)


def special_values():
    """Ties to even and just beside them, subnormals, the largest values, infinities, NaN."""
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x00010000, 0x7F7FFFFF], dtype=torch.int32)
    odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, -1e38, 3.0, 0.1, 70000.0])
    return torch.cat((ties.view(FP32), odd))


@pytest.mark.parametrize("target", [BF16, FP16, FP32])
def test_casts_round_like_torch(target):
    values = torch.cat((special_values(), torch.randn(1008, generator=torch.Generator().manual_seed(0))))
    values = values[values.abs().nan_to_num(0.0, 0.0) < 60000] if target == FP16 else values
    values = torch.nn.functional.pad(values, (0, 1024 - len(values)))
    out = torch.empty(1024, dtype=target)
    _copy_kernel[(1,)](values, out, BLOCK=1024)
    assert torch.equal(out.nan_to_num(9.0), values.to(target).nan_to_num(9.0))
    assert torch.equal(out.isnan(), values.isnan())


@pytest.mark.parametrize("target", [FP32, FP16])
def test_bfloat16_widens_exactly(target):
    values = torch.randn(1024, generator=torch.Generator().manual_seed(0)).to(BF16)
    out = torch.empty(1024, dtype=target)
    _copy_kernel[(1,)](values, out, BLOCK=1024)
    assert torch.equal(out, values.to(target))


def test_bfloat16_dot_widens_its_operands():
    x = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)).to(BF16)
    out = torch.empty(32, 32)
    _dot_kernel[(1,)](x, out, BLOCK=32)
    assert torch.allclose(out, x.float() @ x.float(), atol=1e-5)


def test_bfloat16_arithmetic_is_refused():
    with pytest.raises(Exception, match="widen to float32"):
        _add_kernel[(1,)](torch.ones(16, dtype=BF16), BLOCK=16)
