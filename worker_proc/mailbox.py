"""Letters to the device and posts from it, in memory both sides reach: what replaces copies around a CUDA graph.

    letters  host ──► device   the graph takes the next one by a counter of its own, row n % ring for letter n
    posts    device ──► host   the graph writes its ids to the same row, over what the host put there: EMPTY

A row is used again `RING` steps later, when its step has long been answered: at most two are in flight. Nobody is told
of a post: the host looks for it when it is due. An event would cost it more, to record and to be woken by, than the
rest of a launch.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from worker_proc.pace import Pace
from worker_proc.transfer import Download

RING = 8
# Neither an id nor -1, which says that a row's logits were bad.
EMPTY = -2

Rows = slice | NDArray[np.int64]


class Mailbox:
    """The host's end of one loop.

    Args:
        width: int32 elements of a letter.
        max_rows: most ids of a post.
        device: where the graph runs. Off CUDA the memory is plain, and a post is there when the launch returns.
        pace: when to look for a post.
    """

    def __init__(self, width: int, max_rows: int, device: torch.device, pace: Pace) -> None:
        self._is_cuda = device.type == "cuda"
        self.letters = torch.zeros((RING, width), dtype=torch.int32, pin_memory=self._is_cuda)
        self.posts = torch.zeros((RING, max_rows), dtype=torch.int32, pin_memory=self._is_cuda)
        self.turn = torch.zeros(1, dtype=torch.int32, device=device)
        self._host_letters, self._host_posts = self.letters.numpy(), self.posts.numpy()
        self._count = 0
        self._pace = pace

    def begin(self) -> NDArray[np.int32]:
        """Return the letter to fill for the step to be launched next, and clear the row of its post."""
        self._count += 1
        turn = self._count % RING
        self._host_posts[turn] = EMPTY
        return self._host_letters[turn]

    def end(self, rows: Rows, size: int) -> "Post | Download":
        """Return the ids of the step just launched, on their way: those of its rows named, ascending; `size` is that of
        the graph. Where no row is named there is no post to look for, and an event tells when the step is over."""
        turn = self._count % RING
        ids = self._host_posts[turn]
        if len(ids[rows]) or not self._is_cuda:
            return Post(ids, rows, self._pace.waiting_for((self, size)))
        event = torch.cuda.Event(blocking=True)
        event.record()
        return Download(self.posts[turn, :0], event)

    def resync(self) -> None:
        """Have the device wait for the letter that `begin` returns next, after a launch that failed half-way."""
        self.turn.fill_(self._count)

    def restart(self) -> None:
        """Number letters from 1 again, after graphs were tried without any; waits for the device."""
        self._count = 0
        self.turn.zero_()
        if self._is_cuda:
            torch.cuda.synchronize()


class Post:
    """Ids that the device writes where the host looks for them.

    Args:
        ids: the row they are written to, one by one and in any order.
        rows: which of it are meant.
        sleep: sleeps until the function it is given returns True.
    """

    def __init__(self, ids: NDArray[np.int32], rows: Rows, sleep: Callable[[Callable[[], bool]], None]) -> None:
        self._ids = ids
        self._rows = rows
        self._sleep = sleep

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        ids = self._ids[self._rows]
        return not len(ids) or (ids[-1] != EMPTY and ids[ids.argmin()] != EMPTY)

    def wait(self) -> NDArray[np.int32]:
        """Sleep until the ids are there and return a copy of them, [R] int32."""
        self._sleep(self.is_done)
        return self._ids[self._rows].copy()
