"""Memory that can be had: of the machine, or less by control groups of both versions and by ulimit -v."""

from pathlib import Path

import psutil
import pytest

from quartet.sizing.host_memory import host_memory

MIB = 1 << 20
V2 = {
    "memory.max": f"{512 * MIB}\n",
    "memory.current": f"{300 * MIB}\n",
    "memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
}
V1 = {
    "memory.limit_in_bytes": f"{512 * MIB}\n",
    "memory.usage_in_bytes": f"{300 * MIB}\n",
    "memory.stat": f"cache 7\ntotal_inactive_file {100 * MIB}\n",
}


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("group", "files", "membership"),
    [
        ("", V2, "0::/\n"),
        ("system.slice/quartet.service", V2, "0::/system.slice/quartet.service\n"),
        ("system.slice", V2, "0::/system.slice/quartet.service\n"),
        ("", V2, "0::/docker/not-visible-inside\n"),
        ("memory/docker/1", V1, "4:memory:/docker/1\n3:cpu:/x\n"),
        ("memory", V1, "4:memory:/docker/not-visible-inside\n"),
    ],
)
def test_a_control_group(group: str, files: dict[str, str], membership: str, tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / group, files)
    write(tmp_path, {"self": membership})
    found = host_memory(tmp_path / "cgroup", tmp_path / "self")
    assert found == (512 * MIB, min(312 * MIB, psutil.virtual_memory().available))


@pytest.mark.parametrize("limit", ["max\n", f"{1 << 62}\n"])
def test_a_group_without_a_limit(limit: str, tmp_path: Path) -> None:
    write(tmp_path / "cgroup", {**V2, "memory.max": limit})
    write(tmp_path, {"self": "0::/\n"})
    assert host_memory(tmp_path / "cgroup", tmp_path / "self").total_bytes == psutil.virtual_memory().total


def test_nothing_to_read(tmp_path: Path) -> None:
    assert host_memory(tmp_path, tmp_path / "none").total_bytes == psutil.virtual_memory().total
