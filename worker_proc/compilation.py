"""Ahead-of-time compilation of Triton kernels, and a count of the kernels compiled or loaded after the worker is ready.

A kernel met with types, alignments or constants that are not loaded stalls a step: by milliseconds if a cache holds
it, by seconds if not. The count should stay 0.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quartet.checkpoint.cache import cache_root

logger = logging.getLogger(__name__)

_MAX_THREADS = 16
TRITON_HASH = "triton.hash"


class LateCompileCounter:
    """Counts kernels that are compiled or loaded after `start`."""

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> None:
        """Count from here on. Imports Triton."""
        from triton import knobs

        knobs.compilation.listener = self._on_compile

    def _on_compile(self, *, src: Any, **_: Any) -> None:
        self.count += 1
        logger.warning("kernel %s was not warm: a step had to wait for it", getattr(src, "name", "?"))


def compile_ahead(launch_all: Callable[[], None], progress: Callable[[], None]) -> int:
    """Compile and load the kernels that `launch_all` would launch, several at a time, and return their number.

    While it runs, no kernel is launched: launches of kernels that are not loaded are only recorded. The contents of its
    tensors are therefore arbitrary. Calls `progress` after each kernel.
    """
    from triton import knobs
    from triton.runtime.jit import JITFunction

    recorded: dict[tuple[str, str], tuple[Any, str]] = {}
    launch = JITFunction.run

    def record(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        recorded.setdefault((fn.name, key), (fn.jit_function, compile["specialization_data"]))
        return True

    def prepare(kernel: Any, *operands: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return launch(kernel, *operands, grid=grid, warmup=True, **options)

    # The hook is called for kernels that are not loaded; `prepare` keeps loaded ones from running.
    knobs.runtime.jit_cache_hook, JITFunction.run = record, prepare
    try:
        launch_all()
    finally:
        knobs.runtime.jit_cache_hook, JITFunction.run = None, launch
    # A thread loads kernels to the current device, which each thread has for itself.
    on_device = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_available() else None
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), "compile", on_device) as pool:
        for _ in pool.map(_compile, recorded.values()):
            progress()
    return len(recorded)


def _compile(kernel: tuple[Any, str]) -> None:
    function, specialization = kernel
    compiled = function.preload(specialization)
    # Reading `run` builds the launcher and loads the kernel.
    _ = compiled.run


def share_triton_hash(folder: Path) -> None:
    """Have the workers of a launch share Triton's hash of its own files, some 400 MB, without which it finds no kernel.

    The first worker computes it and writes it to `folder`, the run directory."""
    from triton.runtime import cache

    path = folder / TRITON_HASH
    try:
        value = path.read_text()
    except OSError:
        value = cache.triton_key()
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(value)
        unfinished.rename(path)
    cache.triton_key = lambda: value


def set_kernel_cache() -> None:
    """Keep Triton's compiled kernels in our cache folder, unless the environment names another."""
    if not os.environ.get("TRITON_CACHE_DIR"):
        os.environ["TRITON_CACHE_DIR"] = str(cache_root() / "triton")
