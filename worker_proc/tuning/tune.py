"""Finds the fastest tile of each linear, beside what the engine would take, and says what that gains."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from kernels.tile_table import ROW_SIZES, LinearCase
from kernels.tiles import Tile
from worker_proc.tuning.linears import Linear

LEAST_GAIN = 0.015
"""A tile that is faster by less is taken for as fast as today's: repeated timings differ by about 1 %."""
MAX_ERROR = 0.02
_FINALISTS, _ROUNDS = 2, 3


class Timer(Protocol):
    """Times one linear over some rows."""

    linear: Linear
    rows: int

    def today(self) -> Tile | None:
        """Return the tile that the engine takes, None for cuBLAS."""
        ...

    def us(self, tile: Tile | None) -> float:
        """Return the microseconds with a tile, or with cuBLAS for None."""
        ...

    def error(self, tile: Tile | None) -> float:
        """Return the relative difference from cuBLAS."""
        ...


class Outcome(NamedTuple):
    """What was found for a linear over `rows` rows: times in microseconds, and `tile` instead of today's if it is
    better."""

    linear: Linear
    rows: int
    before_us: float
    after_us: float
    is_better: bool
    tile: Tile | None

    @property
    def case(self) -> LinearCase:
        """The key of the table."""
        return LinearCase(self.linear.form, self.linear.width, self.linear.depth, self.rows)


def tune_linear(timer: Timer, tiles: Iterable[Tile]) -> Outcome:
    """Return the outcome for one linear over some rows.

    Candidates are timed once; today's and the best of them are then timed in turns, and the smallest time of each
    counts, so that a slow moment decides nothing."""
    linear, rows, today = timer.linear, timer.rows, timer.today()
    candidates: dict[Tile | None, float] = {}
    for tile in [None, *tiles]:
        try:
            if tile != today and (tile is None or timer.error(tile) < MAX_ERROR):
                candidates[tile] = timer.us(tile)
        # A tile that does not compile, or does not fit this card, is none.
        except (RuntimeError, ValueError):
            continue
    best = sorted(candidates, key=lambda tile: candidates[tile])[:_FINALISTS]
    times: dict[Tile | None, list[float]] = {tile: [] for tile in (today, *best)}
    for _ in range(_ROUNDS):
        for tile, found in times.items():
            found.append(timer.us(tile))
    before_us = min(times[today])
    fastest = min(times, key=lambda tile: min(times[tile]))
    is_better = min(times[fastest]) < (1 - LEAST_GAIN) * before_us
    return Outcome(linear, rows, before_us, min(times[fastest]) if is_better else before_us, is_better, fastest)


def step_us(outcomes: Iterable[Outcome], rows: int) -> tuple[float, float]:
    """Return the microseconds of all linears of a decode step over `rows` rows, before and after."""
    of_rows = [one for one in outcomes if one.rows == rows]
    before, after = (sum(one.linear.uses * getattr(one, name) for one in of_rows) for name in ("before_us", "after_us"))
    return before, after


def better(outcomes: Iterable[Outcome]) -> Mapping[LinearCase, Tile | None]:
    """Return the table of what is faster than today. Where cuBLAS wins over a split, the whole linear is cuBLAS's."""
    table: dict[LinearCase, Tile | None] = {}
    for one in outcomes:
        if not one.is_better:
            continue
        table[one.case] = one.tile
        if one.tile is None and one.linear.form == "split_k":
            table[one.case._replace(form="plain")] = None
    return table


def sizes(most: int) -> Iterator[int]:
    """Yield the numbers of rows to measure, up to the first that covers `most`."""
    for rows in ROW_SIZES:
        yield rows
        if rows >= most:
            return
