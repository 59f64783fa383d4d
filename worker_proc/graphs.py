"""CUDA graphs of steps: the interface of the graph runners, the buffers they share, and how graphs are captured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from worker_proc.completion_poller import CompletionPoller
from worker_proc.device_step import LaunchedStep
from worker_proc.ops.interface import LayerCache
from worker_proc.slots import IntArray, StepRows

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE as GraphPool

Size = TypeVar("Size", int, tuple[int, int])


class GraphRunner(Protocol):
    """Runs one kind of step by CUDA graphs of several sizes; off CUDA, and until `capture`, without graphs."""

    max_page_writes: int
    """Page table writes that fit into a step descriptor."""

    @property
    def is_prepared(self) -> bool:
        """Whether no size is still to be captured."""
        ...

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

    def capture_at_need(self, pool: "GraphPool", has_kernels: bool) -> None:
        """Have each size captured when a step first needs it, or by `prepare_next`; see StepGraphs."""
        ...

    def prepare_next(self) -> bool:
        """Capture the largest size that is still to be captured, while no step is in flight; False if there is none."""
        ...

    def recover(self) -> None:
        """Prepare for the next launch after one that raised."""
        ...


@dataclass(frozen=True, slots=True)
class SharedBuffers:
    """What graph runners share with the rest of the runner. On the device: one cache a layer, the page tables
    [groups, slots + 1, pages] int32, whose last row is the dummy row, and the newest id of each slot [slots + 1]
    int64."""

    caches: list[LayerCache]
    page_tables: Tensor
    last_token: Tensor
    poller: CompletionPoller

    @property
    def all_rows(self) -> Tensor:
        """The page tables as one, [groups * (slots + 1), pages], as page table writes count its rows."""
        return self.page_tables.flatten(0, 1)


def specialization_sizes(sizes: list[int]) -> list[int]:
    """Return the smallest and the largest of `sizes`, ascending, between consecutive powers of two: for the sizes of
    such an interval Triton compiles the kernels with the same constants, but for the power itself, which ends it."""
    powers = [_power_of_two(size) for size in sizes]
    around = zip(sizes, powers, [None, *powers], [*powers[1:], None], strict=False)
    return [
        size for size, power, before, following in around if power not in (before, following) or before != following
    ]


def _power_of_two(size: int | None) -> int:
    return 0 if size is None else (size - 1).bit_length()


class StepGraphs(Generic[Size]):
    """The CUDA graphs of one kind of step, one a size, captured all at once or each at its first need.

    A capture records launches of kernels that are loaded. Where the warm-up runner has not loaded them, the first step
    of a size runs without a graph, which loads them, and the second is captured. `run` launches the kernels of a step
    of that size; it is not kept, because it belongs to an object that holds this one.

    Args:
        sizes: ascending.
    """

    def __init__(self, sizes: list[Size]) -> None:
        self._sizes: list[Size] = sizes
        self._graphs: dict[Size, torch.cuda.CUDAGraph] = {}
        self._loaded: set[Size] = set()
        self._pool: GraphPool | None = None

    def capture(self, run: Callable[[Size], None], pool: "GraphPool", progress: Callable[[], None]) -> None:
        """Capture every size, the largest first, with its tensors in `pool`. All kernels must be loaded."""
        self._pool = pool
        for size in reversed(self._sizes):
            self._capture(run, size, pool)
            progress()

    def capture_at_need(self, pool: "GraphPool", has_kernels: bool) -> None:
        """Capture from here on what `launch` and `prepare_next` need. `has_kernels`: all kernels are loaded."""
        self._pool = pool
        self._loaded = set(self._sizes) if has_kernels else set()

    def launch(self, run: Callable[[Size], None], size: Size, exact: Size) -> None:
        """Start a step of `size` by its graph; without graphs, as off CUDA, of its `exact` size."""
        if self._pool is None:
            run(exact)
        elif size in self._graphs:
            self._graphs[size].replay()
        elif size in self._loaded:
            self._capture(run, size, self._pool).replay()
        else:
            run(size)
            self._loaded.add(size)

    @property
    def is_prepared(self) -> bool:
        """Whether no size is still to be captured."""
        return self._pool is None or len(self._graphs) == len(self._sizes)

    def prepare_next(self, run: Callable[[Size], None], begin_empty: Callable[[], None]) -> bool:
        """Capture the largest size that is still to be captured; returns False if there is none. `begin_empty` begins
        a step without rows: one loads the kernels, where that is needed, and one is captured."""
        if self.is_prepared:
            return False
        size = max(set(self._sizes) - self._graphs.keys())
        while size not in self._graphs:
            begin_empty()
            self.launch(run, size, size)
        return True

    def _capture(self, run: Callable[[Size], None], size: Size, pool: "GraphPool") -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # A thread of NCCL asks for the ends of earlier operations, which is no part of the capture.
        mode = "thread_local" if torch.distributed.is_initialized() else "global"
        with torch.cuda.graph(graph, pool=pool, capture_error_mode=mode):
            run(size)
        self._graphs[size] = graph
        return graph


def no_progress() -> None:
    """Does nothing: there is no progress to report inside a graph."""
