"""Linears of a few rows against plain torch: one piece, parts, gated, with rows that do not fill the tile."""

import pytest
import torch
from kernel_cases import BF16, FP16, FP32, assert_close, assert_within_two_roundings, normal

from kernels import skinny_tiles
from kernels.skinny_linear import skinny_linear, skinny_linear_reference
from kernels.skinny_tiles import gated_tile, split_k_tile, unsplit_tile
from kernels.tiles import HopperTile, SkinnyTile

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


def meta(width, depth):
    return torch.empty(width, depth, dtype=BF16, device="meta")


SHAPES = ((1024, 2048), (1024, 3072), (4096, 4096), (4096, 14336), (28672, 4096), (151936, 1024))


def test_tiles_fit_what_they_are_chosen_for(monkeypatch):
    monkeypatch.setattr(skinny_tiles, "is_hopper", lambda device: False)
    for width, depth in SHAPES:
        for rows in (1, 16, 17, 64):
            tile = split_k_tile(meta(width, depth), rows)
            assert depth % (tile.block_k * tile.splits) == 0 and width % tile.block_n == 0
    assert split_k_tile(meta(1024, 2048), 8).splits == 8 and split_k_tile(meta(4096, 14336), 40).splits == 2
    assert split_k_tile(meta(1024, 2048), 65) is None and unsplit_tile(meta(1000, 128), 1) is None
    assert gated_tile(meta(6144, 1024), 1).splits == 1 and gated_tile(meta(64, 128), 1) is None


def test_tiles_for_hopper_fit_its_shared_memory(monkeypatch):
    monkeypatch.setattr(skinny_tiles, "is_hopper", lambda device: True)
    for width, depth in SHAPES:
        for rows in (1, 8, 33, 64, 65, 128):
            for tile in (split_k_tile(meta(width, depth), rows), gated_tile(meta(width, depth), rows)):
                assert isinstance(tile, HopperTile) and tile.stages >= 2
                assert depth % (tile.block_k * tile.splits) == 0
                padded = max(8, 1 << (rows - 1).bit_length())
                assert tile.stages * tile.block_k * 2 * (64 + padded) <= skinny_tiles.SHARED_BYTES
    assert split_k_tile(meta(1024, 2048), 8).splits == 2 and split_k_tile(meta(4096, 4096), 8).splits == 1
    assert split_k_tile(meta(4096, 14336), 8).splits == 2 and split_k_tile(meta(1024, 3072), 8).splits == 4
    assert split_k_tile(meta(1024, 2048), 129) is None and isinstance(unsplit_tile(meta(151936, 1024), 1), SkinnyTile)


def test_what_does_not_fit_is_refused():
    x, weight = torch.zeros(2, 96, dtype=BF16), torch.zeros(64, 96, dtype=BF16)
    with pytest.raises(ValueError, match="do not fit"):
        skinny_linear(x, weight, SkinnyTile(32, 64, 1, 4, 2))
    with pytest.raises(ValueError, match="one split"):
        skinny_linear(x, weight, SkinnyTile(32, 32, 3, 4, 2), torch.zeros(64, dtype=BF16))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 6, 8, 9, 33, 64, 65, 80, 127, 128])
@pytest.mark.parametrize(("width", "depth"), [(256, 1024), (1024, 3072), (4096, 14336)])
def test_the_kernel_for_hopper_matches_the_reference(guarded, width, depth, rows):
    """The ring comes round at the deepest; rows that do not fill the tile write nothing beyond themselves."""
    x, weight = normal(rows, depth, dtype=BF16, seed=1), normal(width, depth, dtype=BF16, seed=2) / depth**0.5
    bias = normal(width, dtype=BF16, seed=3)
    if not isinstance(unsplit_tile(weight, rows), HopperTile):
        pytest.skip("no Hopper GPU")
    whole = skinny_linear(x, weight, unsplit_tile(weight, rows), bias)
    assert_within_two_roundings(whole, skinny_linear_reference(x, weight, bias))
    parts = skinny_linear(x, weight, split_k_tile(weight, rows))
    summed = parts.sum(0).to(BF16) if parts.dim() == 3 else parts
    assert_within_two_roundings(summed, skinny_linear_reference(x, weight))
    gated = skinny_linear(x, weight, gated_tile(weight, rows), gated=True)
    assert_within_two_roundings(gated, skinny_linear_reference(x, weight, gated=True))
