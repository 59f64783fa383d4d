"""Times decode attention of rows that share prefixes, by tile: the measurements behind kernels/prefix_decode.py.

    python -m benchmarks.kernels.prefix_groups [--json FILE]

Prints microseconds of a layer's attention for 8 KV heads of dimension 128, bf16, pages of 16: each row for itself, then
by groups with each tile, twice in turn; and the largest difference between both results.
"""

import argparse
import sys
from itertools import accumulate
from typing import Any

import torch

from benchmarks.kernels.attention_times import PAGE_SIZE, SCALE, graph_us
from benchmarks.kernels.random_inputs import BF16, RandomInputs
from benchmarks.report import describe_host, report
from benchmarks.roofline import HEAD_DIM, KV_HEADS, kv_bytes
from kernels import prefix_decode
from kernels.decode_partition import partition_decode
from kernels.paged_decode import paged_decode
from kernels.prefix_decode import PrefixTile, SharedPrefixes, partition_prefixes

# (rows, groups, shared tokens, own tokens)
CASES = [
    (100, 1, 2048, 192), (100, 10, 2048, 192), (100, 50, 2048, 192), (16, 1, 2048, 192), (256, 1, 1024, 256),
    (256, 8, 1024, 256), (32, 4, 8192, 256), (8, 1, 16384, 128), (128, 1, 128, 1024),
]  # fmt: skip
TILES = [
    PrefixTile(64, 64, 4, 2, 2), PrefixTile(64, 64, 4, 3, 1), PrefixTile(64, 64, 4, 3, 2), PrefixTile(64, 128, 4, 2, 1),
    PrefixTile(128, 64, 8, 2, 1), PrefixTile(128, 64, 8, 3, 1),
]  # fmt: skip
COPIES, PASSES = 3, 2


class Case:
    """The operands of one case; copies of them lie on pages of their own."""

    def __init__(self, make: RandomInputs, rows: int, groups: int, shared: int, own: int, heads: int) -> None:
        width, pages = -(-(shared + own) // PAGE_SIZE), shared // PAGE_SIZE
        self.cache, self.tables = make.regions(rows, shared + own, PAGE_SIZE, COPIES)
        order = sorted(range(rows), key=lambda row: row % groups)
        for table in self.tables:
            for row in range(rows):
                table[row, :pages] = table[row % groups, :pages]
        self.tails = [torch.nn.functional.pad(table[:, pages:], (0, pages)).contiguous() for table in self.tables]
        counts = [len(range(group, rows, groups)) for group in range(groups)]
        ends = [0, *accumulate(counts)]
        fill = 64 - groups
        given = [*ends, *[rows] * fill], [shared] * groups + [0] * fill, [*range(groups), *[0] * fill], order
        self.shared = SharedPrefixes(*(make.integers(values) for values in (*given, [shared] * rows)))
        self.q, self.width = make.normal(rows, heads, HEAD_DIM, dtype=BF16), width
        self.lens, self.own = make.integers([shared + own] * rows), make.integers([own] * rows)
        self._heads = heads

    def each(self, table: torch.Tensor, partition: torch.Tensor) -> torch.Tensor:
        """Attention of each row for itself."""
        options: dict[str, Any] = {"partition": partition, "metadata_ready": True}
        return paged_decode(self.q, self.cache, table, self.lens, SCALE, **options)

    def grouped(self, at: int, partition: torch.Tensor, items: Any) -> torch.Tensor:
        """Attention by groups."""
        parts = prefix_decode.prefix_decode(self.q, self.cache, self.tables[at], self.shared, items, SCALE)
        options: dict[str, Any] = {"partition": partition, "metadata_ready": True, "prefixes": parts}
        return paged_decode(self.q, self.cache, self.tails[at], self.own, SCALE, **options)

    def times(self, tile: PrefixTile | None) -> tuple[float, float]:
        """Return microseconds, and the difference from the rows for themselves."""
        shape = KV_HEADS, self._heads // KV_HEADS, HEAD_DIM, BF16
        alone = partition_decode(self.lens, *shape)
        if tile is None:
            return graph_us([lambda t=table: self.each(t, alone) for table in self.tables]), 0.0
        prefix_decode.TILES[HEAD_DIM, 2] = tile
        tails = partition_decode(self.own, *shape)
        items = partition_prefixes(self.shared, self._heads, KV_HEADS, HEAD_DIM, BF16)
        us = graph_us([lambda at=at: self.grouped(at, tails, items) for at in range(COPIES)])
        error = (self.grouped(0, tails, items) - self.each(self.tables[0], alone)).abs().max().item()
        return us, error


def measure(make: RandomInputs, numbers: tuple[int, int, int, int], heads: int) -> dict[str, Any]:
    """Time one case in all ways."""
    rows, groups, shared, own = numbers
    case, us, worst = Case(make, *numbers, heads), dict[str, list[float]](), 0.0
    for tile in [None, *TILES] * PASSES:
        name = "each row" if tile is None else str(tuple(tile))
        try:
            found, error = case.times(tile)
        except Exception as problem:
            us[name] = [f"{type(problem).__name__}: {problem}"[:80]]  # type: ignore[list-item]
            continue
        us.setdefault(name, []).append(round(found, 1))
        worst = max(worst, error)
    floor = 1e6 * kv_bytes(groups * shared + rows * own) / 4.5e12
    one = {"case": f"{rows} rows, {groups} groups, {shared} + {own}, {heads} heads", "floor_us": round(floor, 1)}
    one |= {"us": us, "difference": worst}
    print(one, file=sys.stderr, flush=True)
    return one


def main() -> int:
    """Time every case and print one JSON object."""
    parser = argparse.ArgumentParser(description="decode attention of rows that share prefixes")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    make = RandomInputs(torch.device("cuda"))
    results = [measure(make, case, heads) for heads in (32, 16) for case in CASES]
    report({**describe_host(), "results": results}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
