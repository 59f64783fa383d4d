"""Memory that a process of this machine can still get: that of the machine, its container and its own limits."""

import resource
from pathlib import Path
from typing import NamedTuple

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


class HostMemory(NamedTuple):
    """Bytes in all, and those that are free or can be reclaimed."""

    total_bytes: int
    available_bytes: int


def host_memory(cgroups: Path = _CGROUPS, memberships: Path = Path("/proc/self/cgroup")) -> HostMemory:
    """Return the memory of the machine, or less if a control group or `ulimit -v` allows less."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _group_limits(cgroups, memberships):
        total, available = min(total, limit), min(available, max(0, limit - used))
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        total, available = min(total, address_space), min(available, address_space)
    return HostMemory(total, available)


def _group_limits(cgroups: Path, memberships: Path) -> list[tuple[int, int]]:
    """Return limit and use, less what can be reclaimed, of each control group that this process is in."""
    found = []
    for line in _text(memberships).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            root = cgroups / "memory"
        elif not controllers:
            names, root = ("memory.max", "memory.current", "inactive_file"), cgroups
        else:
            continue
        # In a container the group's own path is often not visible: its files are at the root.
        group = root / path.lstrip("/")
        for folder in {root, *(one for one in (group, *group.parents) if one.is_relative_to(root))}:
            limit, used = _text(folder / names[0]).strip(), _text(folder / names[1]).strip()
            if limit.isdigit() and used.isdigit():
                found.append((int(limit), int(used) - _statistic(folder / "memory.stat", names[2])))
    return found


def _statistic(path: Path, name: str) -> int:
    fields = (line.split() for line in _text(path).splitlines())
    return next((int(one[1]) for one in fields if len(one) == 2 and one[0] == name), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
