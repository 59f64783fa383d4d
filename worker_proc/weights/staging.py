"""Weights on their way to a device: copied by several threads into pinned memory, from there by the device itself.

A copy straight from a mapped file takes its page faults one by one while the device waits; here pages are touched by
all threads at once, and while one piece crosses the bus the next is filled.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

BUFFER_BYTES = 32 << 20
NUM_BUFFERS = 4
THREADS = 8


class PinnedStaging:
    """Args: the device, on CUDA with pinned memory and copies that run by themselves; bytes of a piece, in eights."""

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._ring = torch.empty((NUM_BUFFERS, buffer_bytes), dtype=torch.uint8, pin_memory=self._is_cuda)
        self._copied: list[torch.cuda.Event | None] = [None] * NUM_BUFFERS
        self._index = 0
        self._pool = ThreadPoolExecutor(THREADS, "staging")

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Fill `target` on the device, contiguous, with `source` on the host, converting on the device.

        `source` may be changed or unmapped as soon as this returns; `target` is valid in the stream's order."""
        source = source.contiguous()
        if source.dtype != target.dtype:
            unconverted = torch.empty_like(source, device=self._device)
            self.copy(unconverted, source)
            target.copy_(unconverted)
            return
        there, here = _bytes_of(target), _bytes_of(source).numpy()
        size = self._ring.shape[1]
        for start in range(0, len(here), size):
            piece = here[start : start + size]
            there[start : start + size].copy_(self._filled(piece), non_blocking=True)
            if self._is_cuda:
                copied = torch.cuda.Event()
                copied.record()
                self._copied[self._index] = copied

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _filled(self, piece: "np.ndarray[tuple[int], np.dtype[np.uint8]]") -> Tensor:
        """Return a copy of the piece in the next copy of the ring, as soon as that has copied."""
        self._index = (self._index + 1) % NUM_BUFFERS
        copied = self._copied[self._index]
        if copied is not None:
            copied.synchronize()
        copy = self._ring[self._index, : len(piece)]
        parts = zip(np.array_split(copy.numpy(), THREADS), np.array_split(piece, THREADS), strict=True)
        list(self._pool.map(lambda pair: np.copyto(*pair), parts))
        return copy


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
