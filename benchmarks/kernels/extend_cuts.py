"""Times extend attention of few new tokens on long contexts, uncut and cut along the keys: the measurements behind
kernels/extend_partition.py.

    python -m benchmarks.kernels.extend_cuts [--tiles 2 4 8] [--json FILE]

Prints microseconds a call for 8 KV heads of dimension 128, bf16, pages of 16: without cuts, then with parts of at least
so many tiles of keys. The forms of a case are timed one after the other, twice.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.kernels.attention_times import timed_extend
from benchmarks.kernels.random_inputs import RandomInputs
from benchmarks.report import describe_host, report
from kernels import extend_partition

# (sequences, new tokens, cached tokens); the last are to be as fast cut as uncut.
CASES = [
    (1, 128, 2048), (1, 128, 8192), (1, 128, 16384), (1, 16, 2048), (1, 16, 8192), (1, 16, 16384), (1, 64, 8192),
    (1, 256, 8192), (1, 512, 8192), (1, 512, 16384), (2, 128, 2048), (4, 128, 2048), (1, 128, 0), (1, 512, 0),
    (8, 1024, 0), (1, 4096, 0),
]  # fmt: skip
PASSES = 2


@contextmanager
def cut(least_tiles: int) -> Iterator[None]:
    """Cut into parts of at least so many tiles; 0 cuts nothing."""
    plain = extend_partition._programs, extend_partition.MIN_PART_TILES
    if least_tiles:
        extend_partition.MIN_PART_TILES = least_tiles
    else:
        uncut: Callable[[torch.device], int] = lambda device: 0  # noqa: E731
        extend_partition._programs = uncut
    try:
        yield
    finally:
        extend_partition._programs, extend_partition.MIN_PART_TILES = plain


def measure(make: RandomInputs, case: tuple[int, int, int], heads: int, tiles: list[int]) -> dict[str, Any]:
    """Time one case in all forms."""
    us: dict[str, list[float]] = {}
    for least in [0, *tiles] * PASSES:
        with cut(least):
            found = timed_extend(make, *case, heads=heads)
        us.setdefault(str(least) if least else "uncut", []).append(round(found["us"], 1))
    print(found["case"], us, file=sys.stderr, flush=True)
    torch.cuda.empty_cache()
    return {"case": found["case"], "floor_us": round(found["floor_us"], 1), "us": us}


def main() -> int:
    """Time every case and print one JSON object."""
    parser = argparse.ArgumentParser(description="extend attention cut along the keys")
    parser.add_argument("--tiles", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    make = RandomInputs(torch.device("cuda"))
    results = [measure(make, case, heads, options.tiles) for heads in (32, 16) for case in CASES]
    report({**describe_host(), "results": results}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
