"""Rings of pinned host memory that replace the copies around a CUDA graph.

    descriptors  host ──► device   the graph reads the next one by its own counter: row n % ring for sequence number n
    outputs      device ──► host   the graph writes its ids to the same row, over the EMPTY that the host put there

A row is reused `RING` steps later, long after its step has been answered: at most two steps are in flight. The host
polls an output when it is due; recording a CUDA event and waking up by it would cost more than the rest of a launch.
"""

from collections.abc import Callable, Hashable

import numpy as np
import torch
from numpy.typing import NDArray

from worker_proc.completion_poller import CompletionPoller
from worker_proc.transfer import Download

RING = 8
# Neither an id nor -1, which marks a row with bad logits.
EMPTY = -2

Rows = slice | NDArray[np.int64]


class PinnedRings:
    """The host's side of one graph runner's rings.

    Args:
        width: int32 elements of a descriptor.
        max_rows: most ids of an output.
        device: where the graph runs. Off CUDA the memory is pageable, and outputs are complete when a launch returns.
        poller: decides when to look for an output.
    """

    def __init__(self, width: int, max_rows: int, device: torch.device, poller: CompletionPoller) -> None:
        self._is_cuda = device.type == "cuda"
        self.descriptors = torch.zeros((RING, width), dtype=torch.int32, pin_memory=self._is_cuda)
        self.outputs = torch.zeros((RING, max_rows), dtype=torch.int32, pin_memory=self._is_cuda)
        self.sequence = torch.zeros(1, dtype=torch.int32, device=device)
        self._host_descriptors: NDArray[np.int32] = self.descriptors.numpy()
        self._host_outputs: NDArray[np.int32] = self.outputs.numpy()
        self._count = 0
        self._poller = poller

    def begin(self) -> NDArray[np.int32]:
        """Return the descriptor to fill for the next step, and clear its row of outputs."""
        self._count += 1
        row = self._count % RING
        self._host_outputs[row] = EMPTY
        descriptor: NDArray[np.int32] = self._host_descriptors[row]
        return descriptor

    def begin_empty(self) -> None:
        """Begin a step without rows, whose outputs are not looked at."""
        self.begin().fill(0)

    def end(self, rows: Rows, size: Hashable) -> "OutputBuffer | Download":
        """Return the in-flight ids of the step just launched: those of `rows`, ascending; `size` is the graph's.

        A step without such rows has no output to poll, so a CUDA event marks its end."""
        row = self._count % RING
        ids = self._host_outputs[row]
        if len(ids[rows]) or not self._is_cuda:
            return OutputBuffer(ids, rows, self._poller.waiter((self, size)))
        event = torch.cuda.Event(blocking=True)
        event.record()
        return Download(self.outputs[row, :0], event)

    def resync(self) -> None:
        """Make the device read the descriptor that `begin` returns next, after a launch that failed half-way."""
        self.sequence.fill_(self._count)

    def restart(self) -> None:
        """Restart at sequence number 1, after graphs ran without descriptors; waits for the device."""
        self._count = 0
        self.sequence.zero_()
        if self._is_cuda:
            torch.cuda.synchronize()


class OutputBuffer:
    """Ids that the device writes to memory which the host polls.

    Args:
        ids: the row they are written to, one by one and in any order.
        rows: which of them to wait for.
        sleep: sleeps until the given function returns True.
    """

    def __init__(self, ids: NDArray[np.int32], rows: Rows, sleep: Callable[[Callable[[], bool]], None]) -> None:
        self._ids = ids
        self._rows = rows
        self._sleep = sleep

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        ids = self._ids[self._rows]
        return not len(ids) or bool(ids[-1] != EMPTY and ids[ids.argmin()] != EMPTY)

    def wait(self) -> NDArray[np.int32]:
        """Sleep until the ids are there and return a copy of them, [R] int32."""
        self._sleep(self.is_done)
        return self._ids[self._rows].copy()
