"""Launch parameters of the products over experts, by rows and shape; timed by benchmarks/kernels/gpu_experts.py."""

from typing import NamedTuple

import torch

from kernels.expert_linear import ExpertTile


class ExpertTiles(NamedTuple):
    """Rows of a tile, and the launch parameters of both products."""

    block_m: int
    hidden: ExpertTile
    down: ExpertTile


# By the most rows of an average expert; the last is for all others.
_STREAMED = ExpertTile(64, 128, 4, 4, True)
TABLE: tuple[tuple[int, ExpertTiles], ...] = (
    (8, ExpertTiles(16, _STREAMED, _STREAMED)),
    (16, ExpertTiles(32, _STREAMED, _STREAMED)),
    (32, ExpertTiles(64, ExpertTile(128, 64, 8, 4, True), ExpertTile(128, 64, 8, 4, True))),
    (64, ExpertTiles(64, ExpertTile(128, 64, 4, 4, False), ExpertTile(128, 64, 4, 4, False))),
    (0, ExpertTiles(128, ExpertTile(128, 64, 8, 3, False), ExpertTile(128, 64, 8, 3, False))),
)
# Weights in MXFP4, of which the depth of gpt-oss has whole blocks of 64; chosen by the compiler's registers, not timed.
_MXFP4 = ExpertTile(64, 64, 4, 6, True)
MXFP4_TABLE: tuple[tuple[int, ExpertTiles], ...] = (
    (8, ExpertTiles(16, _MXFP4, _MXFP4)),
    (16, ExpertTiles(32, _MXFP4, _MXFP4)),
    (0, ExpertTiles(64, ExpertTile(128, 64, 8, 3, True), ExpertTile(128, 64, 8, 3, True))),
)
# Steps with more rows take the tiles of this many, for which kernels are compiled before the first request.
_MOST_ROWS = 2048
# Numbers of 4 bytes, which no tensor core takes without rounding.
_EXACT = ExpertTile(128, 64, 4, 2, True)


def expert_tiles(rows: int, top_k: int, count: int, dtype: torch.dtype, is_mxfp4: bool = False) -> ExpertTiles:
    """Return the tiles for `rows` tokens of `dtype`, each of which takes `top_k` of `count` experts.

    They change at powers of two of the rows alone, as in worker_proc.graphs.specialization_sizes."""
    if dtype.itemsize == 4:
        return ExpertTiles(16, _EXACT, _EXACT)
    padded = min(_MOST_ROWS, 1 << max(0, rows - 1).bit_length())
    table = MXFP4_TABLE if is_mxfp4 else TABLE
    for most, tiles in table[:-1]:
        if padded * top_k <= most * count:
            return tiles
    return table[-1][1]
