"""Times a layer's experts at the dimensions of a model, beside their floor, and sweeps the tiles of both products.

    python -m benchmarks.kernels.gpu_experts [--model NAME] [--rows N ...] [--sweep] [--json FILE]

A block is what a step runs for a layer: the router's scores, routing, both products, and the norm that adds up the
choices. Its floor is the bytes of the experts that the rows touch and of the router, at the rate of a kernel that only
reads; for many rows it is the rate of cuBLAS on as many operations in two dense products. Several layers rotate, each
call has other rows and so other experts. --sweep times candidates of each product alone and prints the best.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.model_configs import experts
from benchmarks.report import describe_host, write_json
from kernels.expert_linear import ExpertTile, experts_down, experts_hidden
from kernels.expert_routing import Routing, route, router_scores
from kernels.expert_tiles import ExpertTiles, expert_tiles
from kernels.mxfp4 import GROUP, Mxfp4
from kernels.norm import add_rms_norm
from worker_proc.compilation import compile_ahead
from worker_proc.tuning.timing import graph_us

READ_GB_PER_S = 4540.0
"""Measured on an H200, on which this is run."""
LAYERS, CALLS = 3, 12
FEW_ROWS = 64
BF16 = torch.bfloat16


class Case:
    """Random layers and rows."""

    def __init__(self, model: str, rows: int) -> None:
        size = self.size = experts(model)
        self.rows = rows

        def normal(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=BF16, device="cuda").normal_()

        self.x = [normal(rows, size.hidden) for _ in range(CALLS)]
        self.router = [normal(size.count, size.hidden) / size.hidden**0.5 for _ in range(LAYERS)]
        stack = _codes if size.is_mxfp4 else lambda *shape: normal(*shape).div_(50)
        self.gate_up = [stack(size.count, 2 * size.width, size.hidden) for _ in range(LAYERS)]
        self.down = [stack(size.count, size.hidden, size.width) for _ in range(LAYERS)]
        self.norm = torch.ones(size.hidden, dtype=BF16, device="cuda")
        self.dtype = torch.float32 if rows <= FEW_ROWS else BF16

    def routing(self, at: int, block_m: int) -> Routing:
        """Return which experts the rows of call `at` take."""
        scores = router_scores(self.x[at % CALLS], self.router[at % LAYERS])
        return route(scores, self.size.top_k, block_m, normalised=True)

    def block(self, at: int, tiles: ExpertTiles) -> torch.Tensor:
        """Run what a step runs."""
        x, layer = self.x[at % CALLS], at % LAYERS
        routing = self.routing(at, tiles.block_m)
        h = experts_hidden(x, self.gate_up[layer], routing, tiles.hidden)
        y = experts_down(h, self.down[layer], routing, tiles.down, self.dtype)
        return add_rms_norm(y, x, self.norm, 1e-6)[0]

    def floor_us(self) -> float:
        """Return the time of reading the touched experts and the router, mean over calls."""
        size, touched = self.size, 0
        for at in range(CALLS):
            tiles = self.routing(at, 16).tiles
            touched += len(tiles[tiles[:, 2] > 0, 0].unique())
        expert_bytes = 3 * size.width * size.hidden * (17 / 32 if size.is_mxfp4 else 2)
        return (touched / CALLS * expert_bytes + size.count * size.hidden * 2) / READ_GB_PER_S / 1e3

    def flops(self) -> float:
        """Return the operations of both products."""
        return 6.0 * self.rows * self.size.top_k * self.size.hidden * self.size.width

    def dense_us(self) -> float:
        """Return the time of cuBLAS for as many operations in two dense products."""
        size, pairs = self.size, self.rows * self.size.top_k
        x = torch.randn((pairs, size.hidden), dtype=BF16, device="cuda")
        h = torch.randn((pairs, size.width), dtype=BF16, device="cuda")
        gate_up = torch.randn((2 * size.width, size.hidden), dtype=BF16, device="cuda")
        down = torch.randn((size.hidden, size.width), dtype=BF16, device="cuda")
        return graph_us(lambda _: (torch.mm(x, gate_up.t()), torch.mm(h, down.t())), 4)


def _codes(*shape: int) -> Mxfp4:
    """Return random codes of a stack, whose numbers are about as large as plain ones."""
    count, rows, columns = shape
    codes = torch.randint(0, 256, (count, rows, columns // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(118, 122, (count, rows, columns // GROUP), dtype=torch.uint8, device="cuda")
    return Mxfp4(codes, scales)


class Trial(NamedTuple):
    """One product with one tile."""

    product: str
    block_m: int
    tile: ExpertTile


def candidates(rows: int, size: Any) -> Iterator[Trial]:
    """Yield the tiles to try: the weight first where an expert has few rows, the tokens first where it has many."""
    if size.is_mxfp4:
        yield from _candidates_of_mxfp4()
        return
    average = rows * size.top_k / size.count
    shapes: list[tuple[int, int, int, int, int]] = []
    if average <= 40:
        for block_m in (16, 32) if average <= 12 else (16, 32, 64):
            shapes += [(block_m, *one) for one in (
                (32, 128, 4, 4), (32, 256, 4, 3), (64, 64, 4, 6), (64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 4, 5),
                (64, 256, 4, 3), (64, 128, 8, 4), (128, 64, 4, 4), (128, 64, 8, 6), (128, 128, 8, 3), (128, 128, 4, 3),
            )]  # fmt: skip
    tiles = [(m, ExpertTile(n, k, warps, stages, True)) for m, n, k, warps, stages in shapes]
    if average > 12:
        wide = [(64, 128, 64, 4, 4), (64, 256, 64, 4, 3), (64, 256, 64, 8, 4), (128, 128, 64, 4, 4)]
        wide += [(128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3), (128, 256, 64, 8, 4)]
        tiles += [(m, ExpertTile(n, k, warps, stages, False)) for m, n, k, warps, stages in wide]
    for product, (block_m, tile) in itertools.product(("hidden", "down"), tiles):
        yield Trial(product, block_m, tile)


def _candidates_of_mxfp4() -> Iterator[Trial]:
    """Yield tiles in which the weight is the left operand."""
    for product, block_m, (n, k), stages in itertools.product(
        ("hidden", "down"), (16, 32, 64, 128), ((64, 64), (64, 128), (128, 64), (128, 128)), (3, 4, 6, 8)
    ):
        for warps in (4, 8) if n == 128 else (4,):
            yield Trial(product, block_m, ExpertTile(n, k, warps, stages, True))


def runner(case: Case, trial: Trial) -> Callable[[int], Any]:
    """Return a call of one product; routings and inputs are made before."""
    size, (product, block_m, tile) = case.size, trial
    routings = [case.routing(at, block_m) for at in range(CALLS)]
    if product == "hidden":
        return lambda at: experts_hidden(case.x[at % CALLS], case.gate_up[at % LAYERS], routings[at % CALLS], tile)
    h = torch.randn((case.rows * size.top_k, size.width), dtype=BF16, device="cuda")
    return lambda at: experts_down(h, case.down[at % LAYERS], routings[at % CALLS], tile, case.dtype)


def swept(case: Case) -> list[dict[str, Any]]:
    """Time all candidates of one number of rows."""
    found = []
    for trial in candidates(case.rows, case.size):
        try:
            us = graph_us(runner(case, trial), CALLS)
        except Exception as failure:
            print("failed", *trial, repr(failure)[:100], flush=True)
            continue
        found.append({"rows": case.rows, "product": trial.product, "block_m": trial.block_m,
                      "tile": list(trial.tile), "us": round(us, 2)})  # fmt: skip
    return sorted(found, key=lambda row: row["us"])


def measured(case: Case) -> dict[str, Any]:
    """Time the block with the tiles of the table, and its parts alone."""
    size, rows = case.size, case.rows
    tiles = expert_tiles(rows, size.top_k, size.count, BF16, size.is_mxfp4)
    scores = [router_scores(case.x[at], case.router[at % LAYERS]) for at in range(CALLS)]
    row = {"rows": rows, "floor": case.floor_us(), "block": graph_us(lambda at: case.block(at, tiles), CALLS)}
    row["scores"] = graph_us(lambda at: router_scores(case.x[at % CALLS], case.router[at % LAYERS]), CALLS)
    row["route"] = graph_us(
        lambda at: route(scores[at % CALLS], size.top_k, tiles.block_m, normalised=True), CALLS
    )  # fmt: skip
    row["hidden"] = graph_us(runner(case, Trial("hidden", tiles.block_m, tiles.hidden)), CALLS)
    row["down"] = graph_us(runner(case, Trial("down", tiles.block_m, tiles.down)), CALLS)
    if rows > 512:
        row["cublas"] = case.dense_us()
        row["TFLOP/s"] = case.flops() / row["block"] / 1e6
        row["cublas TFLOP/s"] = case.flops() / row["cublas"] / 1e6
    return {name: round(value, 2) for name, value in row.items()}


def main() -> None:
    """Compile in several threads, then time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-30b-a3b")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 64, 256, 4096])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", default="")
    options = parser.parse_args()

    def launch_all() -> None:
        for rows in options.rows:
            case = Case(options.model, rows)
            case.block(0, expert_tiles(rows, case.size.top_k, case.size.count, BF16, case.size.is_mxfp4))
            for trial in candidates(rows, case.size) if options.sweep else ():
                runner(case, trial)(0)

    print("kernels:", compile_ahead(launch_all, lambda: None), flush=True)
    results: dict[str, Any] = {**describe_host(), "model": options.model, "blocks": [], "sweep": []}
    for rows in options.rows:
        case = Case(options.model, rows)
        results["blocks"].append(measured(case))
        print(*(f"{name} {value}" for name, value in results["blocks"][-1].items()), flush=True)
        found = swept(case) if options.sweep else []
        results["sweep"] += found
        for product in ("hidden", "down"):
            for row in [row for row in found if row["product"] == product][:6]:
                print("   ", product, row["us"], row["block_m"], *row["tile"], flush=True)
        del case
        torch.cuda.empty_cache()
    write_json(results, options.json)


if __name__ == "__main__":
    main()
