"""Copies of weights to a device through pinned memory, which several threads fill.

A direct copy from a mapped file takes its page faults one by one while the device waits. Here all threads take page
faults at once, and while one buffer is copied to the device the next is filled.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BUFFER_BYTES = 32 << 20
NUM_BUFFERS = 4
THREADS = 8


class PinnedStaging:
    """Args: the device (on CUDA memory is pinned and copies are asynchronous); bytes of a buffer, a multiple of 8."""

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._ring = torch.empty((NUM_BUFFERS, buffer_bytes), dtype=torch.uint8, pin_memory=self._is_cuda)
        self._copied: list[torch.cuda.Event | None] = [None] * NUM_BUFFERS
        self._index = 0
        self._pool = ThreadPoolExecutor(THREADS, "staging")

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Fill `target` on the device, contiguous, with `source` on the host, converting on the device.

        `source` may be changed or unmapped as soon as this returns; `target` is valid in stream order."""
        source = source.contiguous()
        if source.dtype != target.dtype:
            unconverted = torch.empty_like(source, device=self._device)
            self.copy(unconverted, source)
            target.copy_(unconverted)
            return
        device_bytes, host_bytes = _bytes_of(target), _bytes_of(source).numpy()
        size = self._ring.shape[1]
        for start in range(0, len(host_bytes), size):
            buffer = self._filled(host_bytes[start : start + size])
            device_bytes[start : start + size].copy_(buffer, non_blocking=True)
            if self._is_cuda:
                copied = torch.cuda.Event()
                copied.record()
                self._copied[self._index] = copied

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _filled(self, data: NDArray[np.uint8]) -> Tensor:
        """Return a copy of `data` in the next buffer of the ring, once that buffer's last copy is done."""
        self._index = (self._index + 1) % NUM_BUFFERS
        copied = self._copied[self._index]
        if copied is not None:
            copied.synchronize()
        buffer = self._ring[self._index, : len(data)]
        parts = zip(np.array_split(buffer.numpy(), THREADS), np.array_split(data, THREADS), strict=True)
        list(self._pool.map(lambda pair: np.copyto(*pair), parts))
        return buffer


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
