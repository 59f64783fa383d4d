"""The kinds of launch parameters of the linears over few rows."""

from typing import NamedTuple


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
