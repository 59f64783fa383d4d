"""Times tiles of kernels.skinny_linear beside cuBLAS for the linears of two models, weights rotated out of L2.

    python -m benchmarks.gpu_skinny [--json FILE]

Compiles in several processes first; prints the best tiles of each (linear, rows) and cuBLAS's time, in microseconds.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
from pathlib import Path

import torch

from kernels.activation import silu_mul
from kernels.skinny_linear import SkinnyTile, skinny_linear

LINEARS = {
    "qwen qkv": (4096, 1024, False),
    "qwen o": (1024, 2048, False),
    "qwen gate_up": (6144, 1024, True),
    "qwen down": (1024, 3072, False),
    "qwen head": (151936, 1024, False),
    "llama qkv": (6144, 4096, False),
    "llama o": (4096, 4096, False),
    "llama gate_up": (28672, 4096, True),
    "llama down": (4096, 14336, False),
    "llama head": (128256, 4096, False),
}
ROWS = (1, 8, 32, 64)
ROTATED_BYTES = 300 << 20


def tiles(gated: bool) -> list[SkinnyTile]:
    """Return the tiles to try."""
    found = []
    for block_n, block_k, warps, stages in (
        (16, 256, 4, 3), (16, 512, 4, 3), (32, 128, 4, 4), (32, 256, 4, 3), (32, 256, 4, 4), (64, 64, 4, 5),
        (64, 128, 4, 3), (64, 128, 4, 4), (64, 256, 4, 3), (128, 64, 4, 4), (128, 128, 8, 3),
    ):  # fmt: skip
        for splits in (1,) if gated else (1, 2, 4, 8):
            found.append(SkinnyTile(block_n, block_k, splits, warps, stages))
    return found


def fits(tile: SkinnyTile, width: int, depth: int, gated: bool) -> bool:
    """Say whether the tile divides the linear and fills a good part of the card without flooding it."""
    outputs = width // 2 if gated else width
    programs = outputs // tile.block_n * tile.splits
    is_whole = outputs % tile.block_n == 0 and depth % (tile.block_k * tile.splits) == 0
    return is_whole and programs >= 100 and (tile.splits == 1 or programs <= 800)


def compile_part(part: list[tuple[SkinnyTile, bool, int]]) -> None:
    """Compile some tiles, for the cache."""
    for tile, gated, rows in part:
        x = torch.zeros((rows, tile.block_k * tile.splits * 16), dtype=torch.bfloat16, device="cuda")
        weight = torch.zeros((tile.block_n * 16, x.shape[1]), dtype=torch.bfloat16, device="cuda")
        try:
            skinny_linear(x, weight, tile, gated=gated)
        except Exception as error:
            print(tile, rows, repr(error)[:100], flush=True)


def timed(call, count: int) -> float:
    """Return microseconds of a call in a graph of `count` calls."""
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(count):
            call(at)
    best = []
    for _ in range(6):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        best.append(1e3 * start.elapsed_time(end) / count)
    return sorted(best)[2]


def streamed(x: torch.Tensor, weights: list[torch.Tensor], tile: SkinnyTile, gated: bool, at: int) -> torch.Tensor:
    """Run ours on the weight whose turn it is."""
    return skinny_linear(x, weights[at % len(weights)], tile, gated=gated)


def plain(x: torch.Tensor, weights: list[torch.Tensor], gated: bool, at: int) -> torch.Tensor:
    """Run cuBLAS on the weight whose turn it is."""
    y = torch.nn.functional.linear(x, weights[at % len(weights)])
    return silu_mul(y) if gated else y


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    work = [(tile, gated, rows) for gated in (False, True) for tile in tiles(gated) for rows in (8, 32, 64)]
    with concurrent.futures.ProcessPoolExecutor(12, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_part, [work[at::12] for at in range(12)]))
    results = []
    for name, (width, depth, gated) in LINEARS.items():
        copies = max(2, min(24, ROTATED_BYTES // (2 * width * depth)))
        weights = [torch.randn((width, depth), dtype=torch.bfloat16, device="cuda") / 50 for _ in range(copies)]
        for rows in ROWS:
            x = torch.randn((rows, depth), dtype=torch.bfloat16, device="cuda")

            cublas = functools.partial(plain, x, weights, gated)
            row = {
                "linear": name,
                "rows": rows,
                "floor": width * depth * 2 / 3.07e6,
                "cublas": timed(cublas, copies * 2),
            }
            found = []
            for tile in tiles(gated):
                if not fits(tile, width, depth, gated):
                    continue
                try:
                    y = skinny_linear(x, weights[0], tile, gated=gated)
                    if tile.splits > 1:
                        y = y.sum(0)
                    error = ((y.float() - cublas(0).float()).norm() / cublas(0).float().norm()).item()
                    us = timed(functools.partial(streamed, x, weights, tile, gated), copies * 2)
                    found.append((round(us, 2), tuple(tile), round(error, 5)))
                except Exception as failure:
                    found.append((1e9, tuple(tile), repr(failure)[:60]))
            found.sort()
            row["best"] = found[:6]
            results.append(row)
            print(f"{name:15} {rows:3} floor {row['floor']:7.1f} cublas {row['cublas']:7.1f}", *found[:3], flush=True)
        del weights
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
