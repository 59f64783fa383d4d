"""The linear on FP8 weights: each number of rows and each kind of scale is the product with the dequantised weight."""

from types import SimpleNamespace

import pytest
import torch
from kernel_cases import BF16, DEVICE, FP32, normal

from kernels import activation, fp8_numbers, fp8_tiles, gemm_fp8_blocks, pdl, skinny_fp8
from quartet.checkpoint.quantization import Quantization
from worker_proc.ops.fp8_linear import Fp8Kernels, Fp8Linear
from worker_proc.ops.quantized import DequantizingLinear
from worker_proc.weights.quantized import dequantized, quantized

GROUPS = {"channel": (1, 0), "block": (128, 128)}


def linear(group, width, depth, bias=None, is_hopper=False):
    method = Quantization("test", "fp8", "plain", GROUPS[group])
    weight = quantized(normal(width, depth, dtype=FP32, seed=1) / depth**0.5, method)
    switch = pdl if DEVICE.type == "cuda" else SimpleNamespace(is_hopper=lambda device: is_hopper)
    modules = skinny_fp8, fp8_tiles, fp8_numbers, gemm_fp8_blocks, switch
    return Fp8Linear(Fp8Kernels(*modules, activation.silu_mul), weight, bias, None), weight


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", [1, 3, 66])
def test_every_number_of_rows_is_the_product_with_the_dequantised_weight(rows, group):
    bias = normal(128, dtype=BF16, seed=3)
    made, weight = linear(group, 128, 256, bias)
    x = normal(rows, 256, dtype=BF16, seed=2)
    expected = x.float() @ dequantized(weight, FP32).T
    found = made(x)
    assert found.dtype == BF16
    torch.testing.assert_close(found.float(), expected + bias.float(), atol=0.08, rtol=0.02)
    made, _ = linear(group, 128, 256)
    parts = made.partial_sums(x)
    torch.testing.assert_close((parts.sum(0) if parts.dim() == 3 else parts).float(), expected, atol=0.08, rtol=0.02)
    out = torch.empty(rows, 128, dtype=BF16, device=DEVICE)
    made.write(x, out)
    torch.testing.assert_close(out.float(), expected, atol=0.08, rtol=0.02)
    plain = DequantizingLinear(weight, None, None).gated(x)
    torch.testing.assert_close(made.gated(x).float(), plain.float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("group", GROUPS)
def test_many_rows_are_multiplied_in_fp8_on_hopper(group, monkeypatch):
    """Rounding of activations shows: three bits of mantissa in each product."""
    made, weight = linear(group, 128, 256, is_hopper=True)
    x = normal(140, 256, dtype=BF16, seed=2)
    expected = x.float() @ dequantized(weight, FP32).T
    error = (made(x).float() - expected).std() / expected.std()
    assert 0.005 < error < 0.04


@pytest.mark.parametrize(("width", "depth"), [(72, 256), (128, 200), (200, 200)])
@pytest.mark.parametrize("group", GROUPS)
def test_a_shape_that_no_kernel_takes_is_dequantised(width, depth, group):
    made, weight = linear(group, width, depth)
    x = normal(3, depth, dtype=BF16, seed=2)
    torch.testing.assert_close(made(x).float(), x.float() @ dequantized(weight, FP32).T, atol=0.05, rtol=0.02)
