"""How many kernels Triton had to compile or load: none may be needed once the worker is ready.

A kernel met with other types, alignments or constants than before stalls a step for milliseconds, or seconds where no
cache has it.
"""

import logging
import os
from typing import Any

from quartet.checkpoint.cache import cache_root

logger = logging.getLogger(__name__)


class CompileWatch:
    """Counts what comes too late. Args: whether Triton is used; if so, made before the first launch."""

    def __init__(self, uses_triton: bool) -> None:
        self.late = 0
        self._is_ready = False
        if uses_triton:
            from triton import knobs

            knobs.compilation.listener = self._on_compile

    def ready(self) -> None:
        """Say that nothing more should be needed."""
        self._is_ready = True

    def _on_compile(self, *, src: Any, **_: Any) -> None:
        if self._is_ready:
            self.late += 1
            logger.warning("kernel %s was not warm: a step had to wait for it", getattr(src, "name", "?"))


def keep_kernels() -> None:
    """Have Triton keep compiled kernels beside our converted models, unless the environment says where."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_root() / "triton"))
