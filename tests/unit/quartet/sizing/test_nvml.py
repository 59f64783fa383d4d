"""The GPU that a launch gets, as the management library tells it; the library is a stand-in."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from quartet.sizing import nvml
from quartet.sizing.device import find_device
from quartet.sizing.nvml import Gpu, find_gpu
from quartet.wire.config import Config, WorkerConfig
from quartet.wire.errors import ConfigError

GIB = 1 << 30
GPUS = {"0": "H200", "1": "L4", "GPU-abc": "A100"}


class Library:
    """Two GPUs by number, a third by its name; every call returns 0 for success, as the library's do."""

    def __init__(self, is_parted: bool = False) -> None:
        self.is_parted = is_parted
        self.keys = list(GPUS)

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlShutdown(self) -> int:
        return 0

    def _find(self, key: str, handle: Any) -> int:
        if key not in self.keys:
            return 6
        handle._obj.value = 1 + self.keys.index(key)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        return self._find(str(index.value), handle)

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        return self._find(name.decode(), handle)

    def nvmlDeviceGetMigMode(self, handle: Any, mode: Any, pending: Any) -> int:
        mode._obj.value = self.is_parted
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.free = 140 * GIB, 5 * GIB
        return 0

    def nvmlDeviceGetName(self, handle: Any, name: Any, length: Any) -> int:
        name.value = GPUS[self.keys[handle.value - 1]].encode()
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 9, 0
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, processes: Any) -> int:
        count._obj.value = 2
        for index, (pid, size) in enumerate(((7, GIB), (1, 130 * GIB))):
            processes[index].pid, processes[index].bytes = pid, size
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: made)
    monkeypatch.setattr("quartet.sizing.device.torch_version", lambda: "2.11.0+cu128")
    return made


@pytest.mark.parametrize(
    ("visible", "name"),
    [(None, "H200"), ("1", "L4"), ("1,0", "L4"), ("GPU-abc", "A100"), ("", None), ("-1", None), ("9", None)],
)
def test_the_gpu_that_is_visible_first(library: Library, visible: str | None, name: str | None) -> None:
    gpu = find_gpu(0, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (gpu and gpu.name) == name


def test_its_memory_and_who_holds_it(library: Library) -> None:
    assert find_gpu(0, {}) == Gpu("H200", 140 * GIB, 5 * GIB, True, ((1, 130 * GIB), (7, GIB)))


def test_a_part_of_a_gpu_is_not_known(library: Library) -> None:
    library.is_parted = True
    assert find_gpu(0, {}) is None


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvml.ctypes, "CDLL", missing)
    assert find_gpu(0, {}) is None


def test_the_device_names_the_processes(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device = find_device(Config())
    assert device is not None and device.is_cuda and device.has_bfloat16
    assert len(device.holders) == 2 and device.holders[0].startswith("pid 1 ")
    assert device.holders[0].endswith("(130.0 GiB)")


@pytest.mark.parametrize(("version", "words"), [("2.13.0+cpu", "build for the CPU"), ("2.11.0", "no NVIDIA driver")])
def test_cuda_that_cannot_be_had(version: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quartet.sizing.device.torch_version", lambda: version)
    monkeypatch.setattr("quartet.sizing.device.find_gpu", lambda index: None)
    monkeypatch.setattr("quartet.sizing.device._DRIVER", Path("/no/such/file"))
    with pytest.raises(ConfigError, match=words):
        find_device(Config(worker=WorkerConfig(device="cuda")))
    device = find_device(Config())
    assert device is not None and device.kind == "cpu"


def test_a_driver_without_the_library_is_left_to_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("quartet.sizing.device.torch_version", lambda: "2.11.0")
    monkeypatch.setattr("quartet.sizing.device.find_gpu", lambda index: None)
    monkeypatch.setattr("quartet.sizing.device._DRIVER", tmp_path)
    assert find_device(Config()) is None


@pytest.mark.parametrize(
    ("visible", "index", "name"),
    [(None, 1, "L4"), (None, 2, None), ("1,0", 1, "H200"), ("1", 1, None), ("0,GPU-abc", 1, "A100")],
)
def test_the_gpu_of_a_rank(library: Library, visible: str | None, index: int, name: str | None) -> None:
    gpu = find_gpu(index, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (gpu and gpu.name) == name


def test_each_rank_needs_a_gpu_and_the_fullest_one_decides(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library.keys = ["0", "1"]
    free = {"H200": 50 * GIB, "L4": 20 * GIB}
    whole = nvml._describe
    monkeypatch.setattr(nvml, "_describe", lambda *found: (gpu := whole(*found))._replace(free_bytes=free[gpu.name]))
    device = find_device(Config(worker=WorkerConfig(tp_size=2)))
    assert device is not None and (device.name, device.free_bytes) == ("L4", 20 * GIB)
    with pytest.raises(ConfigError, match=r"--tp-size 4: each rank needs a GPU, and 2 can be seen"):
        find_device(Config(worker=WorkerConfig(tp_size=4)))
