"""Linears of a few rows against plain torch: one piece, parts, gated, with rows that do not fill the tile."""

import pytest
import torch
from kernel_cases import BF16, FP16, FP32, assert_close, normal

from kernels.skinny_linear import (
    SkinnyTile,
    gated_tile,
    parts_tile,
    skinny_linear,
    skinny_linear_reference,
    whole_tile,
)

TOLERANCE = {BF16: 3e-2, FP16: 4e-3}


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("rows", [1, 5, 17])
def test_whole_matches_reference(guarded, rows, dtype):
    x, weight = normal(rows, 256, dtype=dtype, seed=1), normal(96, 256, dtype=dtype, seed=2) / 16
    bias = normal(96, dtype=dtype, seed=3)
    tile = SkinnyTile(32, 64, 1, 4, 2)
    assert_close(skinny_linear(x, weight, tile), skinny_linear_reference(x, weight), TOLERANCE[dtype])
    assert_close(skinny_linear(x, weight, tile, bias), skinny_linear_reference(x, weight, bias), TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 19])
def test_parts_add_up(guarded, rows):
    x, weight = normal(rows, 512, dtype=FP16, seed=1), normal(64, 512, dtype=FP16, seed=2) / 16
    parts = skinny_linear(x, weight, SkinnyTile(32, 64, 4, 4, 2))
    assert parts.shape == (4, rows, 64) and parts.dtype == FP32
    for part in range(4):
        depth = slice(128 * part, 128 * part + 128)
        expected = x[:, depth].float() @ weight[:, depth].float().T
        assert_close(parts[part], expected, 1e-3)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_gated_matches_reference(guarded, dtype):
    x, weight = normal(3, 256, dtype=dtype, seed=1), normal(128, 256, dtype=dtype, seed=2) / 16
    found = skinny_linear(x, weight, SkinnyTile(32, 128, 1, 4, 2), gated=True)
    assert_close(found, skinny_linear_reference(x, weight, gated=True), TOLERANCE[dtype])


def test_tiles_fit_what_they_are_chosen_for():
    for width, depth in ((1024, 2048), (1024, 3072), (4096, 4096), (4096, 14336), (576, 1536)):
        for rows in (1, 16, 17, 64):
            tile = parts_tile(width, depth, rows)
            assert depth % (tile.block_k * tile.splits) == 0 and width % tile.block_n == 0
    assert parts_tile(1024, 2048, 8).splits == 8 and parts_tile(4096, 14336, 40).splits == 2
    assert parts_tile(1024, 2048, 65) is None and whole_tile(1000, 128, 1) is None
    assert gated_tile(3072, 1024, 1) is None and gated_tile(14336, 4096, 1).splits == 1


def test_what_does_not_fit_is_refused():
    x, weight = torch.zeros(2, 96, dtype=BF16), torch.zeros(64, 96, dtype=BF16)
    with pytest.raises(ValueError, match="do not fit"):
        skinny_linear(x, weight, SkinnyTile(32, 64, 1, 4, 2))
    with pytest.raises(ValueError, match="one split"):
        skinny_linear(x, weight, SkinnyTile(32, 32, 3, 4, 2), torch.zeros(64, dtype=BF16))
