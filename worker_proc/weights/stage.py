"""Weights on their way to a device: copied by several threads into pinned memory, from there by the device itself.

A copy straight from a mapped file takes its page faults one by one while the device waits; here pages are touched by
all threads at once, and while one piece crosses the bus the next is filled.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

PIECE_BYTES = 32 << 20
PIECES = 4
THREADS = 8


class Stage:
    """Args: the device, on CUDA with pinned memory and copies that run by themselves; bytes of a piece, in eights."""

    def __init__(self, device: torch.device, piece_bytes: int = PIECE_BYTES) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._ring = torch.empty((PIECES, piece_bytes), dtype=torch.uint8, pin_memory=self._is_cuda)
        self._crossed: list[torch.cuda.Event | None] = [None] * PIECES
        self._turn = 0
        self._pool = ThreadPoolExecutor(THREADS, "stage")

    def place(self, target: Tensor, source: Tensor) -> None:
        """Fill `target` on the device, contiguous, with `source` on the host, converting on the device.

        `source` may be changed or unmapped as soon as this returns; `target` is valid in the stream's order."""
        source = source.contiguous()
        if source.dtype != target.dtype:
            unconverted = torch.empty_like(source, device=self._device)
            self.place(unconverted, source)
            target.copy_(unconverted)
            return
        there, here = _bytes_of(target), _bytes_of(source).numpy()
        size = self._ring.shape[1]
        for start in range(0, len(here), size):
            piece = here[start : start + size]
            there[start : start + size].copy_(self._filled(piece), non_blocking=True)
            if self._is_cuda:
                crossed = torch.cuda.Event()
                crossed.record()
                self._crossed[self._turn] = crossed

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _filled(self, piece: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> Tensor:
        """Return a copy of the piece in the next place of the ring, as soon as that has crossed."""
        self._turn = (self._turn + 1) % PIECES
        crossed = self._crossed[self._turn]
        if crossed is not None:
            crossed.synchronize()
        place = self._ring[self._turn, : len(piece)]
        parts = zip(np.array_split(place.numpy(), THREADS), np.array_split(piece, THREADS), strict=True)
        list(self._pool.map(lambda pair: np.copyto(*pair), parts))
        return place


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
