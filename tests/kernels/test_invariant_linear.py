"""Linears whose rows do not depend on their number: one tile against the other, split and whole, against float64."""

import kernel_cases as cases
import pytest
import torch
from kernel_cases import BF16, FP16, FP32, normal

from kernels import invariant_linear as own
from kernels.invariant_linear import FEW_ROWS, invariant_linear, linear_tile, splits_of
from kernels.norm import add_rms_norm
from quartet.wire.errors import ConfigError
from worker_proc.ops.invariant_triton import check_tiles

SMALL = own.LinearTile(16, 32, 32, 4, 2)
LARGE = own.LinearTile(32, 64, 32, 4, 2)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(("width", "depth"), [(96, 128), (70, 84)])
def test_matches_float64_and_every_tile_gives_the_same_bits(dtype, width, depth):
    x, weight, bias = normal(37, depth, dtype=dtype, seed=1), normal(width, depth, dtype=dtype, seed=2), None
    bias = normal(width, dtype=dtype, seed=3)
    found = invariant_linear(x, weight, bias, tile=LARGE)
    expected = x.double() @ weight.double().T + bias.double()
    assert (found.double() - expected).abs().max() < (2e-5 if dtype == FP32 else 0.3)
    for count in (1, 5, 16, 37):
        for tile in (SMALL, LARGE):
            assert torch.equal(invariant_linear(x[:count], weight, bias, tile=tile), found[:count])
            last = invariant_linear(x[-count:], weight, bias, tile=tile)
            assert torch.equal(last, found[-count:]), "a row's bits depend on its place"


def test_partial_sums_of_few_rows_are_those_that_many_rows_add(monkeypatch):
    monkeypatch.setattr(own, "MIN_SPLIT_DEPTH", 64)
    x, weight, residual = (
        normal(80, 256, dtype=BF16, seed=1),
        normal(48, 256, dtype=BF16, seed=2),
        normal(80, 48, dtype=BF16, seed=3),
    )
    scale = torch.ones(48, dtype=BF16, device=x.device)
    assert splits_of(48, 256) == 4
    many = invariant_linear(x, weight, partial=True)
    few = invariant_linear(x[:9], weight, partial=True)
    assert many.shape == (80, 48) and few.shape == (4, 9, 48)
    assert torch.equal(invariant_linear(x[:9], weight), many[:9])
    for one, other in zip(
        add_rms_norm(few, residual[:9], scale, 1e-5), add_rms_norm(many, residual, scale, 1e-5), strict=True
    ):
        assert torch.equal(one, other[:9])


def test_splits_and_tiles_follow_from_sizes():
    assert [splits_of(*shape) for shape in ((4096, 4096), (4096, 14336), (28672, 4096), (1024, 3072), (576, 1536))] == [
        2, 2, 1, 2, 1,
    ]  # fmt: skip
    assert linear_tile(BF16, 1) == linear_tile(BF16, FEW_ROWS) != linear_tile(BF16, FEW_ROWS + 1)


def test_a_card_whose_products_depend_on_the_tile_is_refused():
    check_tiles(invariant_linear, own.tiles_of(BF16), BF16, cases.DEVICE)

    def product(x, weight, tile):
        return invariant_linear(x, weight, tile=tile) + (tile == own.TILES[1])

    with pytest.raises(ConfigError, match="--deterministic: on this card"):
        check_tiles(product, own.TILES, BF16, cases.DEVICE)


def test_bad_arguments_are_named():
    x, weight = normal(3, 64, dtype=BF16, seed=1), normal(32, 64, dtype=BF16, seed=2)
    with pytest.raises(ValueError, match=r"do not fit"):
        invariant_linear(x, weight.float())
    with pytest.raises(ValueError, match="no bias"):
        invariant_linear(x, weight, weight[:, 0].contiguous(), partial=True)
