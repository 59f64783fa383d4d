"""Launch parameters of linears that were measured on one card, in place of the rules of skinny_tiles.

`quartet tune` measures them (worker_proc/tuning). A card without a table is served by the rules, as correctly.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from kernels.tiles import Tile

Form = Literal["plain", "split_k", "gated"]
ROW_SIZES = (1, 8, 16, 32, 64, 96, 128)
"""The numbers of rows that are measured; one in between takes what is measured for the next."""


class LinearCase(NamedTuple):
    """A linear of weight [width, depth] (gated: gate and up together) over `rows` of ROW_SIZES."""

    form: Form
    width: int
    depth: int
    rows: int


_table: dict[LinearCase, Tile | None] = {}


def use(table: Mapping[LinearCase, Tile | None]) -> None:
    """Have linears launched from here on as `table` says; None in it stands for cuBLAS. Graphs that are captured keep
    what they were captured with."""
    _table.clear()
    _table.update(table)


def find(form: Form, weight: torch.Tensor, rows: int) -> tuple[bool, Tile | None]:
    """Return whether the table knows the linear of a weight, and its tile."""
    if not _table or rows > ROW_SIZES[-1] or weight.dtype.itemsize != 2 or not weight.is_contiguous():
        return False, None
    case = LinearCase(form, weight.shape[0], weight.shape[1], row_size(rows))
    return case in _table, _table.get(case)


def row_size(rows: int) -> int:
    """Return the number of rows that was measured for `rows`, at most the last of ROW_SIZES."""
    return next(size for size in ROW_SIZES if size >= rows)
