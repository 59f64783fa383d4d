"""How the linears of a few rows are launched, by shape and device, as timed on an H100.

The times are those of benchmarks/kernels/gpu_skinny.py.
"""

from typing import NamedTuple

import torch

from kernels.overlap import on_hopper


class SkinnyTile(NamedTuple):
    """Launch parameters: weight rows and depth of a tile, parts of the depth, warps, pipeline stages."""

    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int


class HopperTile(NamedTuple):
    """Launch parameters of the kernel for Hopper: depth of a tile, parts of the depth, tiles in flight."""

    block_k: int
    splits: int
    stages: int


Tile = SkinnyTile | HopperTile

# More rows make the product, not the weight, the work.
MAX_ROWS = 64
MAX_ROWS_ON_HOPPER = 128
# Outputs from which there are programs enough to hide one another's start, and the plain kernel does as well.
WIDE = 65536
# A part of the depth below this is over before it has begun, one above it too long for the programs of a narrow linear.
LEAST_PART, MOST_PART = 768, 8192
MULTIPROCESSORS = 132
SHARED_BYTES = 220 << 10


def whole_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """The tile for a linear whose result is wanted whole, or None where cuBLAS must do."""
    width, depth = weight.shape
    if width < WIDE and _suits_hopper(weight, rows):
        return _hopper_tile(width // 64, depth, 1, rows)
    if not _suits(weight, rows):
        return None
    return SkinnyTile(64, 128, 1, 4, 4 if rows <= 32 else 3)


def parts_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """The tile for a linear whose parts somebody adds up, or None where cuBLAS must do."""
    width, depth = weight.shape
    blocks, splits = width // 64, 1
    if _suits_hopper(weight, rows):
        while splits < 8 and depth % (256 * splits) == 0 and depth // (2 * splits) >= LEAST_PART:
            if blocks * splits >= 64 and depth // splits <= MOST_PART:
                break
            splits *= 2
        return _hopper_tile(blocks * splits, depth // splits, splits, rows)
    if not _suits(weight, rows):
        return None
    # Parts enough for one to two programs a multiprocessor, fewer when activations are wide.
    most = 300 if rows <= 16 else 200
    while splits < 8 and blocks * splits * 2 <= most and depth % (256 * splits) == 0:
        splits *= 2
    return SkinnyTile(64, 128, splits, 4, 4)


def gated_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """The tile for the gated linear on weight [2 N, K], or None where two kernels must do."""
    if _suits_hopper(weight, rows):
        return _hopper_tile(weight.shape[0] // 64, weight.shape[1], 1, rows)
    return (
        SkinnyTile(64, 128, 1, 4, 4 if rows <= 32 else 3)
        if _suits(weight, rows) and not weight.shape[0] % 128
        else None
    )


def _suits(weight: torch.Tensor, rows: int) -> bool:
    return weight.dtype.itemsize == 2 and rows <= MAX_ROWS and not weight.shape[0] % 64 and not weight.shape[1] % 128


def _suits_hopper(weight: torch.Tensor, rows: int) -> bool:
    is_whole = not weight.shape[0] % 64 and not weight.shape[1] % 128 and weight.is_contiguous()
    return weight.dtype.itemsize == 2 and rows <= MAX_ROWS_ON_HOPPER and is_whole and on_hopper(weight.device)


def _hopper_tile(programs: int, part: int, splits: int, rows: int) -> HopperTile:
    """All of a multiprocessor's shared memory where there is one program for each, half of it where there are more."""
    block_k = 64 if rows > 64 else 128
    shared = SHARED_BYTES if programs <= MULTIPROCESSORS else SHARED_BYTES // 2
    stages = shared // (2 * block_k * (64 + max(8, 1 << (rows - 1).bit_length())))
    return HopperTile(block_k, splits, min(stages, part // block_k))
