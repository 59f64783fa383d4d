"""Times decode attention by how its work is split among programs: the measurements behind kernels/decode_partition.py.

    python -m benchmarks.kernels.decode_partition [--json FILE]

Three partitions are made on the host for each batch: even runs for all programs, even runs for as many programs as have
equally many splits, and whole (sequence, KV head) pairs. Prints microseconds a call for 8 KV heads of dimension 128,
bf16, pages of 16.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from benchmarks.kernels.attention_times import PAGE_SIZE, decode_us
from benchmarks.kernels.random_inputs import RandomInputs
from benchmarks.report import describe_host, report
from benchmarks.roofline import HEAD_DIM, KV_HEADS, PEAK_BYTES_PER_S, kv_bytes
from kernels import decode_partition

UNIT = decode_partition.MIN_SPLIT_TOKENS
KINDS = ("even", "equal", "whole")
# (rows, context)
ALIKE = [
    (2, 1024), (4, 1056), (8, 1024), (12, 1056), (16, 1056), (20, 1056), (24, 1056), (28, 1056), (32, 1056),
    (40, 1056), (48, 1056), (56, 1056), (8, 512), (16, 512), (32, 512), (4, 2048), (8, 2048), (16, 2048), (1, 4096),
    (2, 4096), (4, 4096), (8, 4096), (12, 4096), (16, 4096), (24, 4096), (32, 4096), (1, 16384), (2, 16384),
    (4, 16384), (8, 16384), (16, 16384), (32, 16384),
]  # fmt: skip
MIXED_ROWS = (8, 16, 32, 48)
WIDE_LENGTHS = (100, 200, 400, 800, 1600, 3200, 6400)


def batches() -> dict[str, list[int]]:
    """Return the contexts of each batch by its name."""
    draw = random.Random(1)
    found = {f"{rows} x {context}": [context] * rows for rows, context in ALIKE}
    found |= {f"{rows} of 200 to 1800": [draw.randint(200, 1800) for _ in range(rows)] for rows in MIXED_ROWS}
    return found | {f"{rows} of 100 to 6400": [draw.choice(WIDE_LENGTHS) for _ in range(rows)] for rows in MIXED_ROWS}


def units_of(contexts: Sequence[int]) -> list[int]:
    """Return the units of each row."""
    return [max(1, -(-context // UNIT)) for context in contexts]


def make_partition(contexts: Sequence[int], kind: str, programs: int) -> list[int]:
    """Return a partition as kernels.decode_partition lays it out."""
    units = units_of(contexts)
    ends = list(accumulate(KV_HEADS * each for each in units))
    if kind == "whole":
        starts = [0, *accumulate(each for each in units for _ in range(KV_HEADS))]
        pairs = len(starts) - 1
        return [0, *(starts[min(pairs, _run_start(at, pairs, programs))] for at in range(programs + 1)), *ends]
    active = programs
    if kind == "equal":
        splits = KV_HEADS * sum(-(-each // _units_per_split(each)) for each in units)
        active = -(-splits // -(-splits // programs))
    return [active, *(min(ends[-1], _run_start(at, ends[-1], active)) for at in range(programs + 1)), *ends]


def _run_start(program: int, count: int, programs: int) -> int:
    return program * (count // programs) + min(program, count % programs)


def _units_per_split(units: int) -> int:
    return 1 if units <= 8 else 2 if units <= 64 else 4


def measure(make: RandomInputs, name: str, contexts: Sequence[int], heads: int) -> dict[str, Any]:
    """Time one batch by each partition."""
    programs = decode_partition._resident_programs(make.device, decode_partition.TILES[HEAD_DIM, 2].programs_per_sm)
    partitions = {kind: make.integers(make_partition(contexts, kind, programs)) for kind in KINDS}
    us = {
        kind: round(decode_us(make, contexts, PAGE_SIZE, heads, partition), 1) for kind, partition in partitions.items()
    }
    longest = max(units_of(contexts))
    found = {
        "batch": name,
        "heads": heads,
        "longest": longest,
        "floor_us": round(1e6 * kv_bytes(sum(contexts)) / PEAK_BYTES_PER_S, 1),
        "us": us,
    }
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Time every batch and print one JSON object."""
    parser = argparse.ArgumentParser(description="ways to split the work of decode attention")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    make = RandomInputs(torch.device("cuda"))
    results = [measure(make, name, contexts, heads) for heads in (16, 32) for name, contexts in batches().items()]
    report({**describe_host(), "results": results}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
