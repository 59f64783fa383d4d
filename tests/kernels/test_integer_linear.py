"""Linears on integers of 4 and 8 bits in groups: kernels against the dequantised weight, and the operation on them."""

import pytest
import torch
from kernel_cases import BF16, DEVICE, FP16, FP32, assert_close, normal

from kernels import activation, integer_linear
from kernels.integer_linear import dequantize_integers, integer_tile
from kernels.integer_linear import integer_linear as run
from kernels.tiles import SkinnyTile
from worker_proc.ops.integer_linear import IntegerKernels, IntegerLinear
from worker_proc.ops.quantized import DequantizingLinear
from worker_proc.weights.integers import packed
from worker_proc.weights.quantized import QuantizedWeight, dequantized

TOLERANCE = {BF16: 3e-2, FP16: 4e-3}


def random_weight(bits, rows, columns, group, is_whole=True):
    """A weight of the worker; with is_whole its zeros are integers, as AWQ and GPTQ have them."""
    generator = torch.Generator().manual_seed(group)
    scale = (torch.rand(rows, columns // group, generator=generator) / 64 + 1e-3).half().float()
    zero = torch.rand(rows, columns // group, generator=generator) * 15
    zero = zero.round() if is_whole else zero
    scales = {"scale": scale, "minimum": -zero * scale}
    if bits == 4:
        codes = packed(torch.randint(0, 16, (rows, columns), generator=generator))
    else:
        codes = torch.randint(-128, 128, (rows, columns), generator=generator).to(torch.int8)
        if is_whole:
            del scales["minimum"]
    kind = "int4" if bits == 4 else "int8"
    return QuantizedWeight(kind, (rows, columns), (1, group), codes, scales).mapped(lambda one: one.to(DEVICE))


def linear(weight, bias=None):
    return IntegerLinear(IntegerKernels(integer_linear, activation.silu_mul), weight, bias, None)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize(("rows", "group"), [(1, 128), (5, 32), (17, 256)])
@pytest.mark.parametrize("bits", [4, 8])
def test_whole_and_parts_match_the_dequantised_weight(guarded, bits, rows, group, dtype):
    weight = random_weight(bits, 64, 256, group)
    scale, minimum = weight.scales["scale"], weight.scales.get("minimum")
    zero = None if minimum is None else -minimum / scale
    x, bias = normal(rows, 256, dtype=dtype, seed=1), normal(64, dtype=dtype, seed=2)
    expected = x.float() @ dequantized(weight, FP32).T
    tolerance = TOLERANCE[dtype] * expected.abs().max().item() / 4
    tile = SkinnyTile(32, min(group, 128), 1, 4, 2)
    found = run(x, weight.codes, scale, zero, tile, bias)
    assert_close(found, (expected + bias.float()).to(dtype), tolerance)
    parts = run(x, weight.codes, scale, zero, tile._replace(splits=2))
    assert parts.shape == (2, rows, 64) and parts.dtype == FP32
    # Differences of whole numbers are exact in 16 bits.
    assert_close(parts.sum(0), expected, 1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantised_numbers_are_rounded_once(guarded, bits):
    weight = random_weight(bits, 8, 320, 64)
    scale, minimum = weight.scales["scale"], weight.scales.get("minimum")
    zero = None if minimum is None else (-minimum / scale).round()
    expected = dequantized(weight, FP32)
    assert_close(dequantize_integers(weight.codes, scale, zero, FP32), expected, 1e-6)
    assert torch.equal(dequantize_integers(weight.codes, scale, zero, FP16), dequantize_integers(
        weight.codes, scale, zero, FP32).half())  # fmt: skip


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(("bits", "group", "is_whole"), [(4, 128, True), (4, 32, False), (8, 32, False), (8, 16, True)])
@pytest.mark.parametrize("rows", [1, 66])
def test_every_number_of_rows_is_the_product_with_the_dequantised_weight(rows, bits, group, is_whole, dtype):
    weight, bias = random_weight(bits, 128, 256, group, is_whole), normal(128, dtype=dtype, seed=3)
    x = normal(rows, 256, dtype=dtype, seed=2)
    expected = x.float() @ dequantized(weight, FP32).T
    close = {"atol": (0.02 if dtype == BF16 else 1e-4) * expected.abs().max().item(), "rtol": 0.02}
    torch.testing.assert_close(linear(weight, bias)(x).float(), expected + bias.float(), **close)
    made = linear(weight)
    parts = made.partial_sums(x)
    torch.testing.assert_close((parts.sum(0) if parts.dim() == 3 else parts).float(), expected, **close)
    out = torch.empty(rows, 128, dtype=dtype, device=DEVICE)
    made.write(x, out)
    torch.testing.assert_close(out.float(), expected, **close)
    plain = DequantizingLinear(weight, None, None).gated(x).float()
    torch.testing.assert_close(made.gated(x).float(), plain, atol=0.03 * plain.abs().max().item(), rtol=0.05)


@pytest.mark.parametrize(("width", "depth", "group"), [(72, 256, 128), (128, 264, 24), (128, 200, 200)])
def test_a_shape_that_the_kernel_does_not_take_is_dequantised(width, depth, group):
    weight = random_weight(8, width, depth, group)
    x = normal(3, depth, dtype=BF16, seed=2)
    assert integer_tile("plain", weight.codes, depth // group, x) is None
    expected = x.float() @ dequantized(weight, FP32).T
    torch.testing.assert_close(linear(weight)(x).float(), expected, atol=0.02 * expected.abs().max().item(), rtol=0.02)


def test_whole_zeros_and_scales_of_a_checkpoint_take_two_bytes():
    made = linear(random_weight(4, 64, 256, 128))
    assert made._scale.dtype == FP16 and made._zero.dtype == BF16
    made = linear(random_weight(4, 64, 256, 32, is_whole=False))
    assert made._zero.dtype == FP32


def test_tiles_fit_what_they_are_chosen_for():
    for (width, depth), group, rows in (((6144, 4096), 128, 1), ((4096, 14336), 32, 33), ((28672, 4096), 4096, 64)):
        codes = torch.empty(width, depth // 2, dtype=torch.uint8, device="meta")
        x = torch.empty(rows, depth, dtype=BF16, device="meta")
        for form in ("plain", "split_k"):
            tile = integer_tile(form, codes, depth // group, x)
            assert tile is not None and not width % tile.block_n and not depth % (tile.block_k * tile.splits)
            assert not group % tile.block_k and (form == "split_k" or tile.splits == 1)


@pytest.mark.parametrize("change", [{"scale": (64, 3)}, {"codes": (64, 100)}, {"zero": (64, 1)}])
def test_what_does_not_fit_is_refused(change):
    sizes = {"codes": (64, 128), "scale": (64, 2), "zero": (64, 2), **change}
    dtypes = {"codes": torch.uint8, "scale": FP16, "zero": BF16}
    given = {name: torch.zeros(size, dtype=dtypes[name], device=DEVICE) for name, size in sizes.items()}
    with pytest.raises(ValueError, match=r"fit|zero"):
        run(normal(1, 256, dtype=BF16, seed=1), *given.values(), SkinnyTile(32, 128, 1, 4, 2))
