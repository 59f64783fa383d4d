"""The number of KV pages that fit: computed once, after the weights are loaded and before the pool is allocated."""

import time
from collections.abc import Callable

import torch

from quartet.sizing.host_memory import host_memory
from quartet.sizing.model_bytes import cpu_kv_bytes, cuda_kv_bytes
from quartet.sizing.window_pools import WindowPool, fitting_pages
from quartet.wire.config import WorkerConfig
from quartet.wire.errors import ConfigError

_FREEING_LIMIT_S, _FREEING_POLL_S = 3.0, 0.02


def pool_bytes(config: WorkerConfig, device: torch.device, is_empty: bool = False) -> int:
    """Return the bytes for KV and the states of slots: on CUDA, `mem_fraction_static` of the GPU's memory less what is
    in use, and on the CPU a quarter of the available memory, at most 2 GiB, of which every rank has its share.

    `is_empty` has what is in use on CUDA count as free: it belongs to the worker whose place this one may take."""
    if device.type != "cuda":
        return cpu_kv_bytes(host_memory().available_bytes) // config.tp_size
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return cuda_kv_bytes(total_bytes, 0 if is_empty else total_bytes - free_bytes, config.mem_fraction_static)


def count_pages(
    config: WorkerConfig,
    device: torch.device,
    page_bytes: int,
    is_empty: bool = False,
    states_bytes: int = 0,
    windows: tuple[WindowPool, ...] = (),
) -> int:
    """Return the number of pages of `page_bytes` (this rank's layers of page group 0) to allocate, dummy page excluded.

    `max_total_tokens` decides if it is set. Otherwise the budget is that of `pool_bytes` less `states_bytes`, which are
    for the states of slots, and the pools of `windows` take their part of it. Raises ConfigError if not even one page
    fits."""
    if config.max_total_tokens:
        pages = config.max_total_tokens // config.page_size
        if pages < 1:
            raise ConfigError(f"max_total_tokens {config.max_total_tokens} is less than a page ({config.page_size})")
        return pages
    budget = pool_bytes(config, device, is_empty) - states_bytes
    if device.type == "cuda":
        advice = f"raise --mem-fraction-static ({config.mem_fraction_static}) or take a smaller model"
    else:
        advice = "free memory or take a smaller model"
    pages = fitting_pages(budget, page_bytes, windows)
    if pages < 1:
        states = f"; {states_bytes >> 20} MiB are for states, fewer --max-running-requests free some" * bool(
            states_bytes
        )
        raise ConfigError(
            f"no memory is left for KV ({budget >> 20} MiB, one page takes {page_bytes} bytes{states}): {advice}"
        )
    return pages


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error of torch means that the device has not the memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def wait_for_memory(device: torch.device, free_bytes: Callable[[], int] | None = None) -> None:
    """Return once the memory of a worker that has just died is free: on CUDA, when no more of it becomes so.

    Args:
        free_bytes: returns the device's free memory; by default the driver's answer."""
    if device.type != "cuda":
        return
    read = free_bytes or (lambda: torch.cuda.mem_get_info(device)[0])
    deadline_s = time.monotonic() + _FREEING_LIMIT_S
    before = read()
    while time.monotonic() < deadline_s:
        time.sleep(_FREEING_POLL_S)
        free = read()
        if free <= before:
            return
        before = free
