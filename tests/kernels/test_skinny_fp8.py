"""Linears of a few rows on FP8 weights against plain torch, with scales of rows and of blocks; codes made of rows."""

import itertools

import pytest
import torch
from kernel_cases import BF16, DEVICE, FP16, FP32, assert_close, assert_within_two_roundings, normal

from kernels import fp8_tiles
from kernels.fp8_numbers import GROUP, quantize_rows, quantize_rows_reference
from kernels.fp8_tiles import fp8_tile
from kernels.gemm_fp8_blocks import gemm_fp8_blocks
from kernels.skinny_fp8 import skinny_fp8, skinny_fp8_reference
from kernels.tiles import HopperTile, SkinnyTile

E4M3 = torch.float8_e4m3fn
TOLERANCE = {BF16: 3e-2, FP16: 4e-3}
GROUPS = {"rows": (1, 0), "row blocks": (1, 128), "blocks": (128, 128)}


def quantised(width, depth, group, seed):
    """Codes of every value, and scales about 1 / 2000, which differ by group."""
    rows, columns = GROUPS[group]
    codes = torch.arange(width * depth, device=DEVICE).remainder(256).to(torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0
    codes = codes[torch.randperm(width * depth, generator=torch.Generator().manual_seed(seed)).to(DEVICE)]
    scale = (2 + normal(width // rows, depth // columns if columns else 1, dtype=FP32, seed=seed)).abs() / 2000
    return codes.view(width, depth).view(E4M3), scale


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", [1, 17])
def test_whole_matches_reference(guarded, rows, group, dtype):
    x, (codes, scale) = normal(rows, 256, dtype=dtype, seed=1), quantised(128, 256, group, 2)
    bias, tile = normal(128, dtype=dtype, seed=3), SkinnyTile(32, 128, 1, 4, 2)
    expected = skinny_fp8_reference(x, codes, scale, bias)
    assert_close(skinny_fp8(x, codes, scale, tile, bias), expected, TOLERANCE[dtype] * expected.abs().max().item() / 4)


@pytest.mark.parametrize("group", GROUPS)
def test_parts_add_up(guarded, group):
    x, (codes, scale) = normal(5, 512, dtype=FP16, seed=1), quantised(128, 512, group, 2)
    parts = skinny_fp8(x, codes, scale, SkinnyTile(32, 128, 2, 4, 2))
    assert parts.shape == (2, 5, 128) and parts.dtype == FP32
    assert_close(parts.sum(0), skinny_fp8_reference(x.float(), codes, scale), 2e-2)


@pytest.mark.parametrize("group", GROUPS)
def test_gated_matches_reference(guarded, group):
    x, (codes, scale) = normal(3, 256, dtype=FP16, seed=1), quantised(256, 256, group, 2)
    expected = skinny_fp8_reference(x, codes, scale, gated=True)
    found = skinny_fp8(x, codes, scale, SkinnyTile(32, 128, 1, 4, 2), gated=True)
    assert_close(found, expected, TOLERANCE[FP16] * expected.abs().max().item() / 4)


@pytest.mark.parametrize(("rows", "width"), [(1, 128), (3, 1152), (2, 1408)])
@pytest.mark.parametrize("grouped", [False, True])
def test_codes_of_rows_match_reference(guarded, rows, width, grouped):
    x = normal(rows, width, dtype=BF16, seed=4) * torch.linspace(0.01, 30, width, device=DEVICE).to(BF16)
    x[0, :GROUP] = 0
    codes, scale = quantize_rows(x, grouped=grouped)
    expected, scales = quantize_rows_reference(x, grouped=grouped)
    assert torch.allclose(scale, scales, rtol=1e-6)
    spread = scales.repeat_interleave(width // scales.shape[1], 1)
    # At a tie the division may round to either side.
    assert ((codes.float() - expected.float()).abs() * spread <= x.float().abs() / 8 + spread * 2**-8).all()
    assert (codes.float() == expected.float()).float().mean() > 0.99


def test_tiles_fit_what_they_are_chosen_for(monkeypatch):
    for hopper in (False, True):
        monkeypatch.setattr(fp8_tiles, "is_hopper", lambda device, hopper=hopper: hopper)
        for width, depth in ((1024, 2048), (6144, 4096), (4096, 14336), (28672, 4096)):
            codes = torch.empty(width, depth, dtype=E4M3, device="meta")
            for rows in (1, 8, 33, 64):
                x = torch.empty(rows, depth, dtype=BF16, device="meta")
                for form, blocked in itertools.product(("plain", "split_k", "gated"), (False, True)):
                    tile = fp8_tile(form, codes, x, is_blocked=blocked)
                    assert isinstance(tile, HopperTile if hopper else SkinnyTile) and tile.stages >= 2
                    assert depth % (tile.block_k * tile.splits) == 0 and (form == "split_k" or tile.splits == 1)
                    assert not blocked or tile.block_k == 128
                    if hopper:
                        padded = max(8, 1 << (rows - 1).bit_length())
                        assert tile.stages * tile.block_k * (64 + 2 * padded) <= fp8_tiles.SHARED_BYTES
    codes = torch.empty(96, 256, dtype=E4M3, device="meta")
    assert fp8_tile("plain", codes, torch.empty(1, 256, dtype=BF16, device="meta"), is_blocked=False) is None
    codes = torch.empty(64, 256, dtype=E4M3, device="meta")
    assert fp8_tile("plain", codes, torch.empty(129, 256, dtype=BF16, device="meta"), is_blocked=False) is None
    assert fp8_tile("plain", codes, torch.empty(1, 256, dtype=FP32, device="meta"), is_blocked=False) is None


def test_what_does_not_fit_is_refused():
    x, (codes, scale) = torch.zeros(2, 256, dtype=BF16, device=DEVICE), quantised(128, 256, "blocks", 1)
    with pytest.raises(ValueError, match="scales"):
        skinny_fp8(x, codes, scale, SkinnyTile(32, 64, 1, 4, 2))
    with pytest.raises(ValueError, match="do not fit"):
        skinny_fp8(x[:, :128], codes, scale, SkinnyTile(32, 128, 1, 4, 2))
    with pytest.raises(ValueError, match="one split"):
        skinny_fp8(x, codes, scale, SkinnyTile(32, 128, 2, 4, 2), gated=True)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 6, 8, 9, 33, 64, 65, 80, 127, 128])
@pytest.mark.parametrize(("width", "depth"), [(256, 1024), (1024, 3072), (4096, 14336)])
@pytest.mark.parametrize("group", GROUPS)
def test_the_kernel_for_hopper_matches_the_reference(guarded, width, depth, rows, group):
    """The ring comes round at the deepest; rows that do not fill the tile write nothing beyond themselves."""
    x, (codes, scale) = normal(rows, depth, dtype=BF16, seed=1), quantised(width, depth, group, 2)
    scale = scale / depth**0.5
    blocked = scale.shape[1] > 1
    bias, tile = normal(width, dtype=BF16, seed=3), fp8_tile("plain", codes, x, is_blocked=blocked)
    if not isinstance(tile, HopperTile):
        pytest.skip("no Hopper GPU")
    assert_within_two_roundings(skinny_fp8(x, codes, scale, tile, bias), skinny_fp8_reference(x, codes, scale, bias))
    parts = skinny_fp8(x, codes, scale, fp8_tile("split_k", codes, x, is_blocked=blocked))
    summed = parts.sum(0).to(BF16) if parts.dim() == 3 else parts
    assert_within_two_roundings(summed, skinny_fp8_reference(x, codes, scale))
    gated = skinny_fp8(x, codes, scale, fp8_tile("gated", codes, x, is_blocked=blocked), gated=True)
    assert_within_two_roundings(gated, skinny_fp8_reference(x, codes, scale, gated=True))


@pytest.mark.parametrize("group", ["row blocks", "blocks"])
@pytest.mark.parametrize("rows", [1, 131])
def test_the_product_of_many_rows_matches_reference(guarded, rows, group):
    x, (codes, scale) = normal(rows, 256, dtype=BF16, seed=1), quantised(256, 256, group, 2)
    coded, x_scale = quantize_rows(x, grouped=True)
    meant = coded.float() * x_scale.repeat_interleave(GROUP, 1)
    found = gemm_fp8_blocks(coded, x_scale, codes, scale, BF16)
    expected = skinny_fp8_reference(meant, codes, scale)
    assert_close(found, expected.to(BF16), 2e-2 * expected.abs().max().item())
