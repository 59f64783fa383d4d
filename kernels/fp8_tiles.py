"""Launch parameters of the linears over few rows on FP8 weights, by shape and device."""

import torch

from kernels.pdl import is_hopper
from kernels.skinny_tiles import (
    MAX_ROWS,
    MAX_ROWS_ON_HOPPER,
    SHARED_BYTES,
    hopper_splits,
    multiprocessors,
    portable_splits,
)
from kernels.tile_table import Form
from kernels.tiles import HopperTile, SkinnyTile, Tile

BLOCK_K = 128


def fp8_tile(form: Form, codes: torch.Tensor, x: torch.Tensor) -> Tile | None:
    """Return the tile of a linear on codes [N, K] over x [M, K], or None where another product is used instead.

    Only split_k makes partial sums; `gated` has the gate and up, N / 2 rows each."""
    width, depth, rows = *codes.shape, x.shape[0]
    if (
        width % (128 if form == "gated" else 64)
        or depth % BLOCK_K
        or not codes.is_contiguous()
        or x.dtype.itemsize != 2
    ):
        return None
    if is_hopper(codes.device) and x.dtype == torch.bfloat16 and rows <= MAX_ROWS_ON_HOPPER:
        splits = hopper_splits(width, depth) if form == "split_k" else 1
        return _hopper_tile(codes.device, width // 64 * splits, depth // splits, splits, rows)
    if rows > MAX_ROWS:
        return None
    splits = portable_splits(width, depth, rows) if form == "split_k" else 1
    return SkinnyTile(64, BLOCK_K, splits, 4, 4 if rows <= 32 else 3)


def _hopper_tile(device: torch.device, programs: int, part: int, splits: int, rows: int) -> HopperTile:
    """Return a tile that uses a multiprocessor's whole shared memory for one program per multiprocessor, else half."""
    shared = SHARED_BYTES if programs <= multiprocessors(device) else SHARED_BYTES // 2
    stages = shared // (BLOCK_K * (64 + 2 * max(8, 1 << (rows - 1).bit_length())))
    return HopperTile(BLOCK_K, splits, min(stages, part // BLOCK_K))
