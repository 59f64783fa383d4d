"""What the loops of decode steps and of prompt steps have in common: what they share, and how graphs are captured."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker_proc.pace import Pace

GraphPool = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Places:
    """What loops share with the rest of the runner. On the device: one KV cache a layer, the page table
    [slots + 1, pages] int32, whose last row is the dummy row, and the newest id of each slot [slots + 1] int64."""

    kv_cache: list[Tensor]
    page_table: Tensor
    last_token: Tensor
    pace: Pace


def class_sizes(sizes: list[int]) -> list[int]:
    """Return the largest of `sizes`, ascending, below or at each power of two: within such a class kernels are launched
    with the same constants."""
    return [
        size for size, following in zip(sizes, [*sizes[1:], None], strict=True) if _class(size) != _class(following)
    ]


def _class(size: int | None) -> int:
    return 0 if size is None else (size - 1).bit_length()


def captured(
    run: Callable[[int], None], sizes: list[int], pool: GraphPool, progress: Callable[[], None]
) -> dict[int, torch.cuda.CUDAGraph]:
    """Capture a run of each size, the largest first; tensors of them live in `pool`. Everything that a run needs has
    been loaded: one of each class has run before, here or elsewhere."""
    graphs: dict[int, torch.cuda.CUDAGraph] = {}
    for size in reversed(sizes):
        graphs[size] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[size], pool=pool):
            run(size)
        progress()
    return graphs


def no_progress() -> None:
    """Inside a graph there is no progress to be told of."""
