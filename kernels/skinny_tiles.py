"""Launch parameters of the linears over few rows, by shape and device; timed by benchmarks/kernels/gpu_skinny.py."""

from typing import NamedTuple

import torch

from kernels.pdl import is_hopper


class SkinnyTile(NamedTuple):
    """Launch parameters: weight rows and depth of a tile, splits of the depth, warps, pipeline stages."""

    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int


class HopperTile(NamedTuple):
    """Launch parameters of the Hopper kernel: depth of a tile, splits of the depth, tiles in flight."""

    block_k: int
    splits: int
    stages: int


Tile = SkinnyTile | HopperTile

# With more rows the kernel would be bound by the product, not by reading the weight.
MAX_ROWS = 64
MAX_ROWS_ON_HOPPER = 128
# From this many outputs on enough programs hide one another's start-up, and the portable kernel is as fast.
WIDE_OUTPUTS = 65536
# Depth of a split: a shorter one is dominated by start-up, a longer one leaves a narrow linear with too few programs.
MIN_SPLIT_DEPTH, MAX_SPLIT_DEPTH = 768, 8192
NUM_SMS = 132
SHARED_BYTES = 220 << 10


def unsplit_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """Return the tile of a linear without split-K, or None where cuBLAS is used instead."""
    width, depth = weight.shape
    if width < WIDE_OUTPUTS and _fits_hopper(weight, rows):
        return _hopper_tile(width // 64, depth, 1, rows)
    if not _fits(weight, rows):
        return None
    return SkinnyTile(64, 128, 1, 4, 4 if rows <= 32 else 3)


def split_k_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """Return the tile of a linear whose consumer adds up split-K partial sums, or None where cuBLAS is used instead."""
    width, depth = weight.shape
    blocks, splits = width // 64, 1
    if _fits_hopper(weight, rows):
        while splits < 8 and depth % (256 * splits) == 0 and depth // (2 * splits) >= MIN_SPLIT_DEPTH:
            if blocks * splits >= 64 and depth // splits <= MAX_SPLIT_DEPTH:
                break
            splits *= 2
        return _hopper_tile(blocks * splits, depth // splits, splits, rows)
    if not _fits(weight, rows):
        return None
    # Enough splits for one to two programs per multiprocessor, fewer when there are more rows.
    most = 300 if rows <= 16 else 200
    while splits < 8 and blocks * splits * 2 <= most and depth % (256 * splits) == 0:
        splits *= 2
    return SkinnyTile(64, 128, splits, 4, 4)


def gated_tile(weight: torch.Tensor, rows: int) -> Tile | None:
    """Return the tile of the gated linear on weight [2 N, K], or None where two kernels are used instead."""
    if _fits_hopper(weight, rows):
        return _hopper_tile(weight.shape[0] // 64, weight.shape[1], 1, rows)
    if not _fits(weight, rows) or weight.shape[0] % 128:
        return None
    return SkinnyTile(64, 128, 1, 4, 4 if rows <= 32 else 3)


def _fits(weight: torch.Tensor, rows: int) -> bool:
    return weight.dtype.itemsize == 2 and rows <= MAX_ROWS and not weight.shape[0] % 64 and not weight.shape[1] % 128


def _fits_hopper(weight: torch.Tensor, rows: int) -> bool:
    is_whole = not weight.shape[0] % 64 and not weight.shape[1] % 128 and weight.is_contiguous()
    return weight.dtype.itemsize == 2 and rows <= MAX_ROWS_ON_HOPPER and is_whole and is_hopper(weight.device)


def _hopper_tile(programs: int, part: int, splits: int, rows: int) -> HopperTile:
    """Return a tile that uses a multiprocessor's whole shared memory for one program per multiprocessor, else half."""
    block_k = 64 if rows > 64 else 128
    shared = SHARED_BYTES if programs <= NUM_SMS else SHARED_BYTES // 2
    stages = shared // (2 * block_k * (64 + max(8, 1 << (rows - 1).bit_length())))
    return HopperTile(block_k, splits, min(stages, part // block_k))
