"""CUDA graphs of steps: the interface of the graph runners, the buffers they share, and how graphs are captured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from worker_proc.completion_poller import CompletionPoller
from worker_proc.device_step import LaunchedStep
from worker_proc.slots import IntArray, StepRows

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as GraphPool


class GraphRunner(Protocol):
    """Runs one kind of step by CUDA graphs of several sizes; off CUDA, and until `capture`, without graphs."""

    max_page_writes: int
    """Page table writes that fit into a step descriptor."""

    def can_run(self, rows: StepRows) -> bool:
        """Return whether this runner can run the step."""
        ...

    def launch(self, rows: StepRows, page_writes: IntArray) -> LaunchedStep:
        """Start a step that `can_run` accepts, with at most `max_page_writes` page table writes."""
        ...

    def run_once(self) -> None:
        """Launch, without graphs, every kernel that a step may need; only while no slot is in use."""
        ...

    def capture(self, pool: "GraphPool", progress: Callable[[], None]) -> None:
        """Capture every size; called once, on CUDA, while no slot is in use."""
        ...

    def recover(self) -> None:
        """Prepare for the next launch after one that raised."""
        ...


@dataclass(frozen=True, slots=True)
class SharedBuffers:
    """What graph runners share with the rest of the runner. On the device: one KV cache a layer, the page table
    [slots + 1, pages] int32, whose last row is the dummy row, and the newest id of each slot [slots + 1] int64."""

    kv_cache: list[Tensor]
    page_table: Tensor
    last_token: Tensor
    poller: CompletionPoller


def specialization_sizes(sizes: list[int]) -> list[int]:
    """Return the largest of `sizes`, ascending, between consecutive powers of two: within such an interval Triton
    compiles the kernels with the same constants."""
    return [
        size
        for size, following in zip(sizes, [*sizes[1:], None], strict=True)
        if _power_of_two(size) != _power_of_two(following)
    ]


def _power_of_two(size: int | None) -> int:
    return 0 if size is None else (size - 1).bit_length()


def capture_graphs(
    run: Callable[[int], None], sizes: list[int], pool: "GraphPool", progress: Callable[[], None]
) -> dict[int, torch.cuda.CUDAGraph]:
    """Capture a run of each size, the largest first, with its tensors in `pool`.

    All kernels must be loaded: one size of each specialization has run before, here or in the warm-up runner."""
    graphs: dict[int, torch.cuda.CUDAGraph] = {}
    for size in reversed(sizes):
        graphs[size] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[size], pool=pool):
            run(size)
        progress()
    return graphs


def no_progress() -> None:
    """Does nothing: there is no progress to report inside a graph."""
