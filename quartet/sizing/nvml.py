"""The GPU that a launch gets, by NVIDIA's management library: no CUDA context is made, torch is not imported."""

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LIBRARY = "libnvidia-ml.so.1"
_MOST_PROCESSES = 64
_NATIVE_BFLOAT16 = (8, 0)


class Gpu(NamedTuple):
    """A GPU: its memory, whether it computes bfloat16 natively, and which processes hold memory, as (pid, bytes)."""

    name: str
    total_bytes: int
    free_bytes: int
    has_bfloat16: bool
    holders: tuple[tuple[int, int], ...] = ()


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("bytes", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute", ctypes.c_uint),
    )


def find_gpu(index: int = 0, environment: Mapping[str, str] = os.environ) -> Gpu | None:
    """Return the GPU that has this index in torch: of all, or of those that CUDA_VISIBLE_DEVICES names.

    None if there is none, or if the library cannot say: without the library, for a part of a GPU (MIG)."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    if library.nvmlInit_v2():
        return None
    try:
        handle = _handle(library, environment.get("CUDA_VISIBLE_DEVICES"), index)
        return None if handle is None else _describe(library, handle)
    finally:
        library.nvmlShutdown()


def _handle(library: Any, visible: str | None, index: int) -> ctypes.c_void_p | None:
    names = None if visible is None else visible.split(",")[index : index + 1]
    handle, wanted = ctypes.c_void_p(), str(index) if names is None else "".join(names).strip()
    if wanted.isdigit():
        failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(wanted)), ctypes.byref(handle))
    elif wanted.startswith("GPU-"):
        failed = library.nvmlDeviceGetHandleByUUID(wanted.encode(), ctypes.byref(handle))
    else:
        return None
    mode, pending = ctypes.c_uint(), ctypes.c_uint()
    is_parted = not failed and not library.nvmlDeviceGetMigMode(handle, ctypes.byref(mode), ctypes.byref(pending))
    return None if failed or (is_parted and mode.value) else handle


def _describe(library: Any, handle: ctypes.c_void_p) -> Gpu | None:
    name, memory = ctypes.create_string_buffer(96), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return None
    library.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name)))
    library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    has_bfloat16 = (major.value, minor.value) >= _NATIVE_BFLOAT16
    return Gpu(name.value.decode(errors="replace"), memory.total, memory.free, has_bfloat16, _holders(library, handle))


def _holders(library: Any, handle: ctypes.c_void_p) -> tuple[tuple[int, int], ...]:
    count, processes = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
    with suppress(AttributeError):
        if not library.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), processes):
            found = [(one.pid, 0 if one.bytes == (1 << 64) - 1 else one.bytes) for one in processes[: count.value]]
            return tuple(sorted(found, key=lambda one: -one[1]))
    return ()


def name_of(pid: int) -> str:
    """Return the name of a process, empty if it cannot be seen, as from inside a container."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
