"""Compiling ahead, and how many kernels Triton had to compile or load too late: none may be, once the worker is ready.

A kernel met with other types, alignments or constants than before stalls a step for milliseconds, or seconds where no
cache has it.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quartet.checkpoint.cache import cache_root

logger = logging.getLogger(__name__)

_MOST_THREADS = 16


class CompileWatch:
    """Counts what comes too late."""

    def __init__(self) -> None:
        self.late = 0

    def begin(self) -> None:
        """Say that nothing more should be needed. Loads Triton."""
        from triton import knobs

        knobs.compilation.listener = self._on_compile

    def _on_compile(self, *, src: Any, **_: Any) -> None:
        self.late += 1
        logger.warning("kernel %s was not warm: a step had to wait for it", getattr(src, "name", "?"))


def compile_ahead(rehearse: Callable[[], None], progress: Callable[[], None]) -> int:
    """Compile and load the kernels that `rehearse` would launch, several at a time, and return their number.

    While it runs, no kernel is launched: those that are not loaded are noted. So it works on tensors of no meaning.
    Calls `progress` after each kernel.
    """
    from triton import knobs
    from triton.runtime.jit import JITFunction

    wanted: dict[tuple[str, str], tuple[Any, str]] = {}
    launch = JITFunction.run

    def note(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        wanted.setdefault((fn.name, key), (fn.jit_function, compile["specialization_data"]))
        return True

    def prepare(kernel: Any, *operands: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        return launch(kernel, *operands, grid=grid, warmup=True, **options)

    # The hook is asked about kernels that are not loaded; those that are must not run either.
    knobs.runtime.jit_cache_hook, JITFunction.run = note, prepare
    try:
        rehearse()
    finally:
        knobs.runtime.jit_cache_hook, JITFunction.run = None, launch
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "compile") as pool:
        for _ in pool.map(_compile, wanted.values()):
            progress()
    return len(wanted)


def _compile(kernel: tuple[Any, str]) -> None:
    function, specialization = kernel
    compiled = function.preload(specialization)
    # Asking for its launcher builds that, and loads the kernel.
    _ = compiled.run


def keep_kernels() -> None:
    """Have Triton keep compiled kernels beside our converted models, unless the environment says where."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_root() / "triton"))
