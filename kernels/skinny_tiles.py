"""Launch parameters of the linears over few rows: those of the card's table (tile_table), else by these rules.

The rules were found on an H100 (docs/log.md); `quartet tune` measures another card.
"""

import functools

import torch

from kernels import tile_table
from kernels.pdl import is_hopper
from kernels.tiles import HopperTile, SkinnyTile, Tile

# With more rows the kernel would be bound by the product, not by reading the weight.
MAX_ROWS = 64
MAX_ROWS_ON_HOPPER = 128
# From this many outputs on enough programs hide one another's start-up, and the portable kernel is as fast.
WIDE_OUTPUTS = 65536
# Depth of a split: a shorter one is dominated by start-up, a longer one leaves a narrow linear with too few programs.
MIN_SPLIT_DEPTH, MAX_SPLIT_DEPTH = 768, 8192
SHARED_BYTES = 220 << 10


def unsplit_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """Return the tile of a linear without split-K, or None where cuBLAS is used instead."""
    width, depth = weight.shape
    is_known, tile = tile_table.find("plain", weight, rows)
    if is_known:
        return tile
    if width < WIDE_OUTPUTS and _fits_hopper(weight, rows):
        return _hopper_tile(weight, width // 64, depth, 1, rows)
    if not _fits(weight, rows):
        return None
    return SkinnyTile(64, 128, 1, 4, 4 if rows <= 32 else 3)


def split_k_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """Return the tile of a linear whose consumer adds up split-K partial sums, or None where cuBLAS is used instead."""
    width, depth = weight.shape
    is_known, tile = tile_table.find("split_k", weight, rows)
    if is_known:
        return tile
    if _fits_hopper(weight, rows):
        splits = hopper_splits(width, depth)
        return _hopper_tile(weight, width // 64 * splits, depth // splits, splits, rows)
    if not _fits(weight, rows):
        return None
    return SkinnyTile(64, 128, portable_splits(width, depth, rows), 4, 4)


def gated_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """Return the tile of the gated linear on weight [2 N, K], or None where two kernels are used instead."""
    is_known, tile = tile_table.find("gated", weight, rows)
    if is_known:
        return tile
    if _fits_hopper(weight, rows):
        return _hopper_tile(weight, weight.shape[0] // 64, weight.shape[1], 1, rows)
    if not _fits(weight, rows) or weight.shape[0] % 128:
        return None
    return SkinnyTile(64, 128, 1, 4, 4 if rows <= 32 else 3)


def hopper_splits(width: int, depth: int) -> int:
    """Return the splits of a linear for the Hopper kernel."""
    blocks, splits = width // 64, 1
    while splits < 8 and depth % (256 * splits) == 0 and depth // (2 * splits) >= MIN_SPLIT_DEPTH:
        if blocks * splits >= 64 and depth // splits <= MAX_SPLIT_DEPTH:
            break
        splits *= 2
    return splits


def portable_splits(width: int, depth: int, rows: int) -> int:
    """Return enough splits for one to two programs per multiprocessor, fewer when there are more rows."""
    blocks, splits = width // 64, 1
    most = 300 if rows <= 16 else 200
    while splits < 8 and blocks * splits * 2 <= most and depth % (256 * splits) == 0:
        splits *= 2
    return splits


def _fits(weight: torch.Tensor, rows: int) -> bool:
    return weight.dtype.itemsize == 2 and rows <= MAX_ROWS and not weight.shape[0] % 64 and not weight.shape[1] % 128


def _fits_hopper(weight: torch.Tensor, rows: int) -> bool:
    is_whole = not weight.shape[0] % 64 and not weight.shape[1] % 128 and weight.is_contiguous()
    return weight.dtype.itemsize == 2 and rows <= MAX_ROWS_ON_HOPPER and is_whole and is_hopper(weight.device)


def _hopper_tile(weight: torch.Tensor, programs: int, part: int, splits: int, rows: int) -> HopperTile:
    """Return a tile that uses a multiprocessor's whole shared memory for one program per multiprocessor, else half."""
    block_k = 64 if rows > 64 else 128
    shared = SHARED_BYTES if programs <= multiprocessors(weight.device) else SHARED_BYTES // 2
    stages = shared // (2 * block_k * (64 + max(8, 1 << (rows - 1).bit_length())))
    return HopperTile(block_k, splits, min(stages, part // block_k))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the device's multiprocessors."""
    # Shapes are looked up without a card by tests alone, for an H100.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
