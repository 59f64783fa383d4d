"""Copies of host arrays to the device without waiting for it, and of sampled ids back."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# More than two steps in flight can use: a buffer is never rewritten while its copy may still be in flight.
_RING = 16
_ALIGNMENT = 16
# The arrays of a step of 16,384 tokens. Memory that is pinned while steps run waits for the device.
_STAGING_BYTES = 512 << 10


class Uploader:
    """Copies several arrays in one transfer. On the CPU the tensors share the arrays' memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._index = 0
        self._ring: list[Tensor] = []
        if device.type == "cuda":
            self._ring += torch.empty((_RING, _STAGING_BYTES), dtype=torch.uint8, pin_memory=True).unbind()

    def __call__(self, arrays: Sequence[NDArray[np.generic]]) -> list[Tensor]:
        """Return one tensor per array, of the same dtype and shape, valid in the stream's order."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        offsets, end = [], 0
        for array in arrays:
            offsets.append(end)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        staging = self._staging(end)
        host = staging.numpy()
        for array, at in zip(arrays, offsets, strict=True):
            host[at : at + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        on_device = staging[:end].to(self._device, non_blocking=True)
        return [
            on_device[at : at + array.nbytes].view(_TORCH[array.dtype.name]).view(array.shape)
            for array, at in zip(arrays, offsets, strict=True)
        ]

    def _staging(self, size: int) -> Tensor:
        self._index = (self._index + 1) % _RING
        if self._ring[self._index].numel() < size:
            self._ring[self._index] = torch.empty(size * 2, dtype=torch.uint8, pin_memory=True)
        return self._ring[self._index]


_TORCH = {"int64": torch.int64, "int32": torch.int32}


class Downloader:
    """Copies sampled ids to the host. On CUDA an event signals when they are there.

    Args:
        device: the device of the ids.
        max_rows: most ids of one step.
    """

    def __init__(self, device: torch.device, max_rows: int) -> None:
        self._is_cuda = device.type == "cuda"
        self._index = 0
        if self._is_cuda:
            self._ring = torch.empty((_RING, max_rows), dtype=torch.int32, pin_memory=True)

    def start(self, ids: Tensor) -> "Download":
        """Start to copy `ids` [R] int64; at most `_RING` downloads may be open at once."""
        if not self._is_cuda:
            return Download(ids, None)
        self._index = (self._index + 1) % _RING
        host = self._ring[self._index, : ids.shape[0]]
        host.copy_(ids, non_blocking=True)
        # A blocking event: a spinning one would take a core from the other processes.
        event = torch.cuda.Event(blocking=True)
        event.record()
        return Download(host, event)


class InFlightIds(Protocol):
    """Sampled ids that may not have reached the host yet."""

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        ...

    def wait(self) -> NDArray[np.int32]:
        """Block until the ids are there and return a copy of them, [R] int32."""
        ...


class Download:
    """Ids that are copied to the host: their destination, and the event that signals their arrival."""

    def __init__(self, host: Tensor, event: "torch.cuda.Event | None") -> None:
        self._host = host
        self._event = event

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        return self._event is None or self._event.query()

    def wait(self) -> NDArray[np.int32]:
        """Block until the ids are there and return a copy of them, [R] int32."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.numpy().astype(np.int32)


class PatchedDownload:
    """Ids of which `rows` are replaced by those of `patch`."""

    def __init__(self, whole: InFlightIds, rows: NDArray[np.int64], patch: InFlightIds) -> None:
        self._whole = whole
        self._rows = rows
        self._patch = patch

    def is_done(self) -> bool:
        """Return whether `wait` would return at once."""
        return self._patch.is_done() and self._whole.is_done()

    def wait(self) -> NDArray[np.int32]:
        """Block until the ids are there and return a copy of them, [R] int32."""
        ids = self._whole.wait()
        ids[self._rows] = self._patch.wait()
        return ids
