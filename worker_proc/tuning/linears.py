"""The linears of a model, and the tiles that are tried for each."""

import itertools
from collections import Counter
from typing import NamedTuple

from kernels.tile_table import Form
from kernels.tiles import HopperTile, SkinnyTile, Tile
from quartet.checkpoint.spec import ModelSpec

SHARED_BYTES = 220 << 10
"""Shared memory of a program that has a multiprocessor for itself."""
# Weight rows, depth, warps, stages.
_SHAPES = ((32, 128, 4, 4), (64, 64, 4, 4), (64, 64, 4, 6), (64, 128, 4, 3), (64, 128, 4, 4), (128, 64, 4, 4))
_SPLITS = (1, 2, 4, 8)
_MIN_PROGRAMS, _MAX_PROGRAMS = 48, 800
_MIN_HOPPER_PROGRAMS, _MAX_HOPPER_PROGRAMS = 32, 600
_HOPPER_ROWS = 64


class Linear(NamedTuple):
    """A linear of weight [width, depth], in the form in which a decoder runs it, `uses` times a step."""

    form: Form
    width: int
    depth: int
    uses: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights in 16 bit, over a step."""
        return 2 * self.width * self.depth * self.uses


def linears_of(spec: ModelSpec) -> list[Linear]:
    """Return the linears of a decoder on one rank, equal ones as one; the products over experts are none of them."""
    # Where norms follow attention and MLP, their linears are not fused with a norm and are not split.
    into_residual: Form = "plain" if spec.norms != "before" else "split_k"
    found = list[Linear]()
    for kind, uses in Counter(spec.attention).items():
        found.append(Linear("plain", kind.heads.size, spec.hidden_size, uses))
        found.append(Linear(into_residual, spec.hidden_size, kind.heads.query_size, uses))
    for width, uses in Counter(map(spec.mlp_width, range(spec.num_layers))).items():
        if width:
            found.append(Linear("gated", 2 * width, spec.hidden_size, uses))
            found.append(Linear(into_residual, spec.hidden_size, width, uses))
    found.append(Linear("plain", spec.vocab_size, spec.hidden_size, 1))
    merged: dict[tuple[Form, int, int], Linear] = {}
    for one in found:
        known = merged.get(one[:3])
        merged[one[:3]] = one if known is None else one._replace(uses=known.uses + one.uses)
    return list(merged.values())


def tiles_for(linear: Linear, rows: int, is_hopper: bool) -> list[Tile]:
    """Return the tiles to try: those that divide the linear, fit into shared memory, and make enough programs for a
    card but not too many."""
    form, width, depth, _ = linear
    outputs = width // 2 if form == "gated" else width
    found: list[Tile] = []
    for splits in _SPLITS if form == "split_k" else (1,):
        for block_n, block_k, warps, stages in _SHAPES:
            programs = outputs // block_n * splits
            is_whole = outputs % block_n == 0 and depth % (block_k * splits) == 0
            shared = stages * block_k * 2 * (block_n * (2 if form == "gated" else 1) + max(16, _padded(rows)))
            has_fair_size = programs >= _MIN_PROGRAMS and (splits == 1 or programs <= _MAX_PROGRAMS)
            if is_whole and has_fair_size and shared <= SHARED_BYTES and rows <= _HOPPER_ROWS:
                found.append(SkinnyTile(block_n, block_k, splits, warps, stages))
        if is_hopper:
            found += _hopper_tiles(width, depth, splits, rows)
    return found


def _hopper_tiles(width: int, depth: int, splits: int, rows: int) -> list[Tile]:
    programs = width // _HOPPER_ROWS * splits
    if width % _HOPPER_ROWS or not _MIN_HOPPER_PROGRAMS <= programs <= _MAX_HOPPER_PROGRAMS:
        return []
    found: list[Tile] = []
    for block_k, shared in itertools.product((64, 128), (SHARED_BYTES, SHARED_BYTES // 2)):
        stages = min(shared // (block_k * 2 * (_HOPPER_ROWS + max(8, _padded(rows)))), depth // splits // block_k)
        if depth % (block_k * splits) == 0 and stages >= 2:
            found.append(HopperTile(block_k, splits, stages))
    return list(dict.fromkeys(found))


def _padded(rows: int) -> int:
    return 1 << (rows - 1).bit_length()
