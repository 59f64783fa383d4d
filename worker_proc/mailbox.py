"""Letters to the device and posts from it, in memory both sides reach: what replaces copies around a CUDA graph.

    letters  host ──► device   the graph takes the next one by a counter of its own, row n % ring for letter n
    posts    device ──► host   the graph writes its ids to the same row

A row is used again `RING` steps later, when its step has long been answered: at most two are in flight.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from worker_proc.transfer import Download

RING = 8


class Mailbox:
    """The host's end of one loop.

    Args:
        width: int32 elements of a letter.
        max_rows: most ids of a post.
        device: where the graph runs. Off CUDA the memory is plain and there is nothing to wait for.
    """

    def __init__(self, width: int, max_rows: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.letters = torch.zeros((RING, width), dtype=torch.int32, pin_memory=is_cuda)
        self.posts = torch.zeros((RING, max_rows), dtype=torch.int32, pin_memory=is_cuda)
        self.turn = torch.zeros(1, dtype=torch.int32, device=device)
        self._host_letters = self.letters.numpy()
        self._count = 0
        # Blocking events: spinning ones would take a core from the other processes.
        self._events = [torch.cuda.Event(blocking=True) for _ in range(RING)] if is_cuda else []

    def begin(self) -> NDArray[np.int32]:
        """Return the letter to fill for the step to be launched next."""
        self._count += 1
        return self._host_letters[self._count % RING]

    def end(self, rows: NDArray[np.int64]) -> Download:
        """Return the ids of the step just launched, on their way: those of its rows named, ascending."""
        turn, event = self._count % RING, None
        if self._events:
            event = self._events[turn]
            event.record()
        return Download(self.posts[turn], event, rows)

    def resync(self) -> None:
        """Have the device wait for the letter that `begin` returns next, after a launch that failed half-way."""
        self.turn.fill_(self._count)

    def restart(self) -> None:
        """Number letters from 1 again, after graphs were tried without any; waits for the device."""
        self._count = 0
        self.turn.zero_()
        if self._events:
            torch.cuda.synchronize()
