"""The tables of tiles on disk: one file per card, of those that Quartet brings and of those that `quartet tune` wrote.

    {"card": name, "triton": version, "linears": [[form, width, depth, rows, [kind, *tile] or null], ..]}

A table is for one version of Triton, whose compiler decides how fast a tile is; another version's is left alone.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kernels import tile_table
from kernels.tile_table import Form, LinearCase
from kernels.tiles import HopperTile, SkinnyTile, Tile
from quartet.checkpoint.cache import cache_root

logger = logging.getLogger(__name__)

SHIPPED = Path(tile_table.__file__).parent / "tables"
_KINDS: dict[str, type[SkinnyTile] | type[HopperTile]] = {"skinny": SkinnyTile, "hopper": HopperTile}


class TableFile(msgspec.Struct):
    """What a file holds."""

    card: str
    triton: str
    linears: list[tuple[Form, int, int, int, list[str | int] | None]]


def use_tables(card: str) -> int:
    """Have the kernels use what was measured on this card; returns the number of linears that are known."""
    table = {**_read(SHIPPED / _file_name(card)), **_read(tuned_path(card))}
    tile_table.use(table)
    return len(table)


def tuned_path(card: str) -> Path:
    """Return where `quartet tune` writes the table of a card."""
    return cache_root() / "tiles" / _file_name(card)


def add_to(path: Path, card: str, table: Mapping[LinearCase, Tile | None]) -> None:
    """Write a table to a file, beside what the file has of other linears. Raises OSError."""
    merged = {**_read(path), **table}
    rows = [(*case, None if tile is None else [_kind(tile), *tile]) for case, tile in sorted(merged.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(TableFile(card, _triton_version(), rows)), indent=0))
    new.replace(path)


def _read(path: Path) -> dict[LinearCase, Tile | None]:
    """Return what a file says; nothing for one that is absent, damaged, or of another Triton."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=TableFile)
        found = {LinearCase(*row[:4]): None if row[4] is None else _tile(row[4]) for row in file.linears}
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        logger.warning("the table of tiles %s cannot be read and is not used: %s", path, error)
        return {}
    if file.triton != _triton_version():
        logger.info("the table of tiles %s is of triton %s: run quartet tune again", path, file.triton)
        return {}
    return found


def _tile(fields: list[str | int]) -> Tile:
    kind, *values = fields
    if not all(type(value) is int and value > 0 for value in values):
        raise TypeError(f"{fields} is no tile")
    return _KINDS[str(kind)](*values)  # type: ignore[arg-type]


def _kind(tile: Tile) -> str:
    return next(name for name, kind in _KINDS.items() if isinstance(tile, kind))


def _file_name(card: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-").lower() + ".json"


def _triton_version() -> str:
    import triton

    return str(triton.__version__)
