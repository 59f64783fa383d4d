"""Launch parameters of the linears over few rows on FP8 weights, by shape and device.

Found on an H200 (docs/log.md). A program's warps wait for copies, make bfloat16 and wait for the product in turn, so
more programs share a multiprocessor than where the weight is multiplied as it is.
"""

import torch

from kernels.pdl import is_hopper
from kernels.skinny_tiles import (
    MAX_ROWS,
    MAX_ROWS_ON_HOPPER,
    SHARED_BYTES,
    multiprocessors,
    portable_splits,
)
from kernels.tile_table import Form
from kernels.tiles import HopperTile, SkinnyTile, Tile

BLOCK_K = 128
MOST_PROGRAMS, PROGRAMS_PER_SM, MIN_SPLIT_DEPTH = 512, 4, 512


def fp8_tile(form: Form, codes: torch.Tensor, x: torch.Tensor, *, is_blocked: bool) -> Tile | None:
    """Return the tile of a linear on codes [N, K] over x [M, K], or None where another product is used instead.

    Only split_k makes partial sums; `gated` has the gate and up, N / 2 rows each. `is_blocked`: scales of blocks."""
    width, depth, rows = *codes.shape, x.shape[0]
    if (
        width % (128 if form == "gated" else 64)
        or depth % BLOCK_K
        or not codes.is_contiguous()
        or x.dtype.itemsize != 2
    ):
        return None
    if is_hopper(codes.device) and x.dtype == torch.bfloat16 and rows <= MAX_ROWS_ON_HOPPER:
        splits = _hopper_splits(width, depth, rows) if form == "split_k" else 1
        return _hopper_tile(codes.device, width // 64 * splits, depth // splits, splits, rows, is_blocked)
    if rows > MAX_ROWS:
        return None
    splits = portable_splits(width, depth, rows) if form == "split_k" else 1
    return SkinnyTile(64, BLOCK_K, splits, 4, 4 if rows <= 32 else 3)


def _hopper_splits(width: int, depth: int, rows: int) -> int:
    """Return the splits of a linear; with more rows the sums that the consumer reads outweigh what they save."""
    splits, most = 1, 8 if rows <= 16 else 4
    while splits < most and width // 64 * splits * 2 <= MOST_PROGRAMS and depth % (2 * BLOCK_K * splits) == 0:
        if depth // (2 * splits) < MIN_SPLIT_DEPTH:
            break
        splits *= 2
    return splits


def _hopper_tile(
    device: torch.device, programs: int, part: int, splits: int, rows: int, is_blocked: bool
) -> HopperTile:
    """Return a tile that leaves shared memory for as many programs on a multiprocessor as there are, up to four."""
    block_k = BLOCK_K if is_blocked or rows > 64 or part % (2 * BLOCK_K) else 2 * BLOCK_K
    resident = min(PROGRAMS_PER_SM, -(-programs // multiprocessors(device)))
    stages = SHARED_BYTES // resident // (block_k * (64 + 2 * max(8, 1 << (rows - 1).bit_length())))
    return HopperTile(block_k, splits, min(max(2, stages), part // block_k))
