"""Times tiles of kernels.skinny_linear beside cuBLAS for the linears of two models.

Each is launched as in a step: after a norm, or before the norm that adds up its parts. Weights rotate, so that none is
read from the L2 cache.

    python -m benchmarks.kernels.gpu_skinny [--linears NAME ...] [--rows N ...] [--json FILE]

Compiles in several threads first. Prints the best tiles of each (linear, rows) and the time of cuBLAS, in microseconds
for linear and norm (and activation, where there is one).
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.model_configs import MODELS, dimensions
from benchmarks.report import write_json
from benchmarks.roofline import BYTES, READ_GB_PER_S
from kernels.activation import silu_mul
from kernels.norm import add_rms_norm, rms_norm
from kernels.skinny_linear import skinny_linear
from kernels.skinny_tiles import HopperTile, SkinnyTile, Tile
from worker_proc.compilation import compile_ahead


class Linear(NamedTuple):
    """A linear: whether its output is gated, and whether the norm behind it adds up its parts."""

    outputs: int
    depth: int
    gated: bool = False
    has_parts: bool = False


def linears(model: str) -> dict[str, Linear]:
    """Return the linears of a model by name."""
    size, short = dimensions(model), model.partition("-")[0].rstrip("0123456789.")
    return {
        f"{short} qkv": Linear(size.query + 2 * size.key_value, size.hidden),
        f"{short} o": Linear(size.hidden, size.query, has_parts=True),
        f"{short} gate_up": Linear(2 * size.intermediate, size.hidden, gated=True),
        f"{short} down": Linear(size.hidden, size.intermediate, has_parts=True),
        f"{short} head": Linear(size.vocab, size.hidden),
    }


LINEARS = {name: linear for model in MODELS for name, linear in linears(model).items()}
ROTATED_BYTES = 300 << 20
SHAPES = ((32, 128, 4, 4), (64, 64, 4, 4), (64, 64, 4, 6), (64, 128, 4, 3), (64, 128, 4, 4), (128, 64, 4, 4))
SHARED_BYTES = 220 << 10


def tiles(name: str, rows: int) -> list[Tile]:
    """Return the tiles to try: those that divide the linear, fit into shared memory, and make enough programs
    for the device but not too many."""
    width, depth, gated, has_parts = LINEARS[name]
    outputs = width // 2 if gated else width
    found: list[Tile] = []
    for splits in (1, 2, 4, 8) if has_parts else (1,):
        for block_n, block_k, warps, stages in SHAPES:
            programs = outputs // block_n * splits
            is_whole = outputs % block_n == 0 and depth % (block_k * splits) == 0
            shared = stages * block_k * 2 * (block_n * (2 if gated else 1) + max(16, rows))
            if is_whole and programs >= 48 and (splits == 1 or programs <= 800) and shared <= SHARED_BYTES:
                found.append(SkinnyTile(block_n, block_k, splits, warps, stages))
        found += hopper_tiles(width, depth, splits, rows)
    return found


def hopper_tiles(width: int, depth: int, splits: int, rows: int) -> list[Tile]:
    """Return the tiles of the kernel for Hopper to try."""
    found: list[Tile] = []
    if not 32 <= width // 64 * splits <= 600:
        return []
    for block_k, shared in itertools.product((64, 128), (SHARED_BYTES, SHARED_BYTES // 2)):
        stages = min(shared // (block_k * 2 * (64 + max(8, rows))), depth // splits // block_k)
        if depth % (block_k * splits) == 0 and stages >= 2:
            found.append(HopperTile(block_k, splits, stages))
    return list(dict.fromkeys(found))


class Case:
    """One linear at one number of rows, with weights enough to rotate."""

    def __init__(self, name: str, rows: int) -> None:
        self.width, self.depth, self.gated, self.has_parts = LINEARS[name]
        self.copies = max(2, min(28, ROTATED_BYTES // (2 * self.width * self.depth)))
        shape = (self.width, self.depth)
        self.weights = [torch.randn(shape, dtype=torch.bfloat16, device="cuda") / 50 for _ in range(self.copies)]
        self.x = torch.randn((rows, self.depth), dtype=torch.bfloat16, device="cuda")
        self.residual = torch.randn((rows, self.width), dtype=torch.bfloat16, device="cuda")
        self.norm = torch.ones(max(self.width, self.depth), dtype=torch.bfloat16, device="cuda")

    def skinny(self, tile: Tile, at: int) -> torch.Tensor:
        """Run skinny_linear on weight `at`."""
        return self._around(lambda x, w: skinny_linear(x, w, tile, gated=self.gated), at)

    def cublas(self, at: int) -> torch.Tensor:
        """Run cuBLAS on weight `at`."""
        return self._around(lambda x, w: self._plain(torch.nn.functional.linear(x, w)), at)

    def _plain(self, y: torch.Tensor) -> torch.Tensor:
        return silu_mul(y) if self.gated else y

    def _around(self, linear: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], at: int) -> torch.Tensor:
        weight = self.weights[at % self.copies]
        if self.has_parts:
            y = linear(self.x, weight)
            return add_rms_norm(y, self.residual, self.norm[: self.width], 1e-6)[0]
        return linear(rms_norm(self.x, self.norm[: self.depth], 1e-6), weight)


def timed(call: Callable[[int], Any], count: int) -> float:
    """Return microseconds of a call in a graph of `count` calls."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(count):
            call(at)
    found = []
    for _ in range(6):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(1e3 * start.elapsed_time(end) / count)
    return sorted(found)[2]


def measured(name: str, rows: int) -> dict[str, Any]:
    """Time all tiles of one case, and check each."""
    case = Case(name, rows)
    width, depth, _, _ = LINEARS[name]
    count = case.copies * 2
    wanted = case.cublas(0).float()
    row = {
        "linear": name,
        "rows": rows,
        "floor": width * depth * BYTES / READ_GB_PER_S / 1e3,
        "cublas": timed(case.cublas, count),
    }
    found = []
    for tile in tiles(name, rows):
        try:
            error = ((case.skinny(tile, 0).float() - wanted).norm() / wanted.norm()).item()
            us = timed(lambda at, tile=tile: case.skinny(tile, at), count)
            found.append((round(us, 2), tile, round(error, 5)))
        except Exception as failure:
            found.append((1e9, tile, repr(failure)[:80]))
    found.sort(key=lambda item: item[0])
    return {**row, "tiles": found}


def main() -> None:
    """Compile, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--linears", nargs="*", default=list(LINEARS))
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32, 64, 128])
    parser.add_argument("--json", default="")
    options = parser.parse_args()

    def launch_all() -> None:
        for name in options.linears:
            for rows in {1 << (rows - 1).bit_length() for rows in options.rows}:
                case = Case(name, rows)
                case.cublas(0)
                for tile in tiles(name, rows):
                    case.skinny(tile, 0)

    print("kernels:", compile_ahead(launch_all, lambda: None), flush=True)
    results = []
    for name in options.linears:
        for rows in options.rows:
            row = measured(name, rows)
            results.append(row)
            best = [(us, type(tile).__name__[0], tuple(tile), error) for us, tile, error in row["tiles"][:5]]
            print(f"{name:14} {rows:3} floor {row['floor']:6.1f} cublas {row['cublas']:6.1f}", *best, flush=True)
    write_json(results, options.json)


if __name__ == "__main__":
    main()
