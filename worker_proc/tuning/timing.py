"""Times linears on a CUDA device, each with the norm or activation that a decoder runs around it."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear as cublas_linear

from kernels.activation import silu_mul
from kernels.norm import add_rms_norm, rms_norm
from kernels.skinny_linear import skinny_linear
from kernels.skinny_tiles import gated_tile, split_k_tile, unsplit_tile
from kernels.tiles import Tile
from worker_proc.tuning.linears import Linear

ROTATED_BYTES = 300 << 20
"""Weights take turns so that together they exceed the L2 cache of a card several times."""
_MAX_COPIES, _REPLAYS = 28, 5
_READ_BYTES = 2 << 30


def weights_of(linear: Linear) -> list[Tensor]:
    """Return bf16 weights enough to take turns."""
    copies = max(2, min(_MAX_COPIES, ROTATED_BYTES // (2 * linear.width * linear.depth)))
    shape = linear.width, linear.depth
    return [torch.randn(shape, dtype=torch.bfloat16, device="cuda").mul_(0.02) for _ in range(copies)]


class LinearTimer:
    """One linear over `rows` rows in bf16. `weights` are those of `weights_of`."""

    def __init__(self, linear: Linear, rows: int, weights: list[Tensor]) -> None:
        self.linear, self.rows = linear, rows
        self._weights = weights
        make = partial(torch.randn, dtype=torch.bfloat16, device="cuda")
        self._x, self._residual = make((rows, linear.depth)), make((rows, linear.width))
        self._norm = torch.ones(max(linear.width, linear.depth), dtype=torch.bfloat16, device="cuda")

    def today(self) -> Tile | None:
        """Return the tile that the engine takes, None for cuBLAS."""
        choose = {"plain": unsplit_tile, "split_k": split_k_tile, "gated": gated_tile}[self.linear.form]
        return choose(self._weights[0], self.rows)

    def run(self, tile: Tile | None, at: int = 0) -> Tensor:
        """Run weight `at` with a tile, or with cuBLAS for None; returns what the next kernel reads."""
        weight, x = self._weights[at % len(self._weights)], self._x
        if self.linear.form == "split_k":
            y = self._product(x, weight, tile)
            return add_rms_norm(y, self._residual, self._norm[: weight.shape[0]], 1e-6)[0]
        return self._product(rms_norm(x, self._norm[: weight.shape[1]], 1e-6), weight, tile)

    def us(self, tile: Tile | None) -> float:
        """Return the microseconds of a run, the median of some replays of a graph of many."""
        return graph_us(lambda at: self.run(tile, at), 2 * len(self._weights))

    def error(self, tile: Tile | None) -> float:
        """Return how far a run's result is from that of cuBLAS, relative to its norm."""
        wanted = self.run(None).float()
        return float((self.run(tile).float() - wanted).norm() / wanted.norm())

    def _product(self, x: Tensor, weight: Tensor, tile: Tile | None) -> Tensor:
        is_gated = self.linear.form == "gated"
        if tile is not None:
            return skinny_linear(x, weight, tile, gated=is_gated)
        y = cublas_linear(x, weight)
        return silu_mul(y) if is_gated else y


def graph_us(run: Callable[[int], Any], count: int) -> float:
    """Return the microseconds of a run: a graph of `count` runs is replayed some times, and the median counts."""
    run(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(count):
            run(at)
    graph.replay()
    found: list[float] = []
    for _ in range(_REPLAYS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(1e3 * start.elapsed_time(end) / count)
    return median(found)


def read_bytes_per_s() -> float:
    """Return the rate at which the card reads its memory: the sum of a tensor that no cache holds."""
    data = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device="cuda").view(-1, 1 << 14)
    us = graph_us(lambda _: torch.sum(data, 1), 4)
    return _READ_BYTES / us * 1e6
