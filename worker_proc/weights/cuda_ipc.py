"""Device memory of one process as memory of another, by the CUDA driver's interprocess handles.

A handle names a whole allocation of the driver; torch puts several tensors into one. The memory belongs to the process
that has allocated it: when that process ends, nothing may be read from it any more.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1


class SharingError(Exception):
    """Memory cannot be shared, or what was shared is gone."""


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * HANDLE_BYTES)]


class _Memory:
    """Device memory in the form in which torch takes it from other libraries."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def allocation_of(tensor: Tensor) -> tuple[int, int]:
    """Return address and bytes of the driver's allocation that holds a CUDA tensor."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(tensor.data_ptr()))
    return base.value, size.value


def export_allocation(address: int) -> bytes:
    """Return the handle of the allocation that begins at `address`.

    Raises SharingError if this device or driver cannot share memory."""
    handle = _Handle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
    return bytes(handle.reserved)


def open_allocation(handle: bytes, size_bytes: int) -> Tensor:
    """Return another process's allocation as [size_bytes] uint8, mapped until this process ends.

    Raises SharingError if it cannot be mapped."""
    # The driver's calls are for the context that torch makes current.
    torch.cuda.current_stream().query()
    address = ctypes.c_uint64()
    value = _Handle((ctypes.c_ubyte * HANDLE_BYTES).from_buffer_copy(handle))
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), value, ctypes.c_uint(_LAZY_PEER_ACCESS))
    memory = torch.as_tensor(_Memory(address.value, size_bytes), device="cuda")
    if memory.data_ptr() != address.value:
        raise SharingError("torch has copied the mapped memory")
    return memory


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status:
        raise SharingError(f"{name}: error {status}")
