"""The device that a launch will run on, found without torch: its memory and what it computes in."""

import importlib.metadata
import os
from pathlib import Path
from typing import NamedTuple

from quartet.runtime.installed import TORCH_CUDA, install_command
from quartet.sizing.host_memory import host_memory
from quartet.sizing.nvml import find_gpu, name_of
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError

_DRIVER = Path("/proc/driver/nvidia/version")
_CPU_BUILD = "+cpu"
_NATIVE_BFLOAT16 = {"avx512_bf16", "amx_tile"}
_LARGE_BYTES = 256 << 20


class Device(NamedTuple):
    """Where the worker runs; of several GPUs the one with the least memory free. `holders` are the processes that hold
    much of a GPU's memory, each as text."""

    kind: str
    name: str
    total_bytes: int
    free_bytes: int
    has_bfloat16: bool
    holders: tuple[str, ...] = ()

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.kind == "cuda"


def find_device(config: Config) -> Device | None:
    """Return the device that the worker of a launch takes; None for a GPU whose memory cannot be asked for.

    Raises ConfigError if CUDA is requested and cannot be had."""
    if config.worker.simulated_worker:
        return _host("simulated")
    device = _chosen(config)
    has_kernels = device is None or device.is_cuda or os.environ.get("TRITON_INTERPRET", "0") != "0"
    if config.worker.attention_backend == "triton" and not has_kernels:
        raise ConfigError("--attention-backend triton needs a CUDA device; give --attention-backend torch")
    return device


def _chosen(config: Config) -> Device | None:
    if config.worker.device == "cpu":
        return _host("cpu")
    is_wanted = config.worker.device == "cuda"
    if torch_version().endswith(_CPU_BUILD):
        if is_wanted:
            raise ConfigError(
                f"--device cuda: the installed torch {torch_version()} is the build for the CPU; give --device cpu, "
                f"or install the CUDA build: {install_command(TORCH_CUDA)}"
            )
        return _host("cpu")
    gpus = [gpu for gpu in map(find_gpu, range(config.worker.tp_size)) if gpu is not None]
    if not gpus:
        if _DRIVER.exists():
            return None
        if is_wanted:
            raise ConfigError("--device cuda: this machine has no NVIDIA driver; give --device cpu")
        return _host("cpu")
    if len(gpus) < config.worker.tp_size:
        raise ConfigError(f"--tp-size {config.worker.tp_size}: each rank needs a GPU, and {len(gpus)} can be seen")
    # Every rank has as many pages as the one that can hold fewest.
    gpu = min(gpus, key=lambda one: one.free_bytes)
    holders = [f"pid {pid} {name_of(pid)}".strip() + f" ({size / (1 << 30):.1f} GiB)" for pid, size in gpu.holders
               if size > _LARGE_BYTES]  # fmt: skip
    return Device("cuda", gpu.name, gpu.total_bytes, gpu.free_bytes, gpu.has_bfloat16, tuple(holders))


def torch_version() -> str:
    """Return the version of the installed torch, empty if it has none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _host(kind: str) -> Device:
    memory = host_memory()
    return Device(kind, kind, memory.total_bytes, memory.available_bytes, bool(_NATIVE_BFLOAT16 & _cpu_flags()))


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
