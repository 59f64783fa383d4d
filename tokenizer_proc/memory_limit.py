"""Bounds the memory of a process that works on what others have written."""

import resource
from pathlib import Path


def limit_memory(spare_bytes: int) -> None:
    """Bound the address space to what is used and `spare_bytes`; raises OSError or ValueError if it cannot be."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + spare_bytes
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
