"""The run directory: private, locked while its launch lives, and removed afterwards, even after SIGKILL."""

import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quartet.supervisor.plan import plan_processes
from quartet.supervisor.rundir import LONGEST_NAME, MAX_SOCKET_PATH_BYTES, RunDirectory
from quartet.wire.config import Config, ServerConfig
from quartet.wire.errors import ConfigError

PREFIX = f"quartet-{os.getuid()}-"


@pytest.fixture
def base() -> Iterator[str]:
    """A short path, so that it is never too long for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield path


@pytest.fixture
def made(base: str) -> Iterator[RunDirectory]:
    """The directory of one launch, which lives as long as the test."""
    directory = RunDirectory.create(base, 1)
    yield directory
    os.close(directory._lock_fd)


def abandon(directory: RunDirectory) -> None:
    """Do what the kernel does when the launch dies: let the lock go."""
    os.close(directory._lock_fd)


def test_it_is_private_and_named_after_the_launch(base: str, made: RunDirectory) -> None:
    assert made.path == Path(base, f"{PREFIX}{1:016x}")
    assert made.path.stat().st_mode & 0o777 == 0o700


def test_it_is_private_under_any_umask(base: str) -> None:
    before = os.umask(0)
    try:
        directory = RunDirectory.create(base, 1)
    finally:
        os.umask(before)
    assert directory.path.stat().st_mode & 0o777 == 0o700
    abandon(directory)


def test_its_lock_is_not_inherited(made: RunDirectory) -> None:
    assert not os.get_inheritable(made._lock_fd)


def test_it_is_removed_with_all_that_is_in_it(made: RunDirectory) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(made.path / "api-0.sock"))
        made.remove()
    assert not made.path.exists()
    made.remove()


def test_the_run_directory_of_a_dead_launch_is_removed(base: str) -> None:
    dead = RunDirectory.create(base, 1)
    (dead.path / "api-0.sock").touch()
    abandon(dead)
    successor = RunDirectory.create(base, 2)
    assert os.listdir(base) == [successor.path.name]
    abandon(successor)


def test_that_of_a_launch_killed_while_it_was_made_is_removed_later(base: str) -> None:
    fresh, old = (Path(base, f".{PREFIX}{number}") for number in (7, 8))
    for path in (fresh, old):
        path.mkdir()
    os.utime(old, times=(0, 0))
    directory = RunDirectory.create(base, 1)
    assert fresh.exists() and not old.exists()
    abandon(directory)


STARTS = """
import os, secrets, sys
from quartet.supervisor.rundir import RunDirectory
for _ in range(int(sys.argv[2])):
    directory = RunDirectory.create(sys.argv[1], secrets.randbits(63))
    (directory.path / "api-0.sock").touch()
    os.stat(directory.path / "api-0.sock")
    # Every other one is left, as by a launch that was killed.
    if secrets.randbits(1):
        directory.remove()
    os.close(directory._lock_fd)
"""


@pytest.mark.parametrize("starts", [50, pytest.param(1500, marks=pytest.mark.slow)])
def test_starts_at_the_same_time_do_not_remove_each_others(base: str, made: RunDirectory, starts: int) -> None:
    command = [sys.executable, "-c", STARTS, base, str(starts)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    successor = RunDirectory.create(base, 2)
    assert sorted(os.listdir(base)) == [made.path.name, successor.path.name]
    abandon(successor)


def test_that_of_a_live_launch_is_kept(base: str, made: RunDirectory) -> None:
    second = RunDirectory.create(base, 2)
    assert sorted(os.listdir(base)) == [made.path.name, second.path.name]
    abandon(second)


def test_a_deleted_one_is_made_and_locked_again(base: str, made: RunDirectory) -> None:
    lines: list[str] = []
    assert made.keep(10.0, lines.append) is None and lines == []
    made.path.rmdir()
    assert made.keep(10.5, lines.append) is None and not made.path.exists(), "it looks once a second"
    assert made.keep(11.1, lines.append) is None and made.path.stat().st_mode & 0o777 == 0o700
    assert lines == [f"the run directory {made.path} was deleted and is made again"]
    second = RunDirectory.create(base, 2)
    assert made.path.exists(), "it is locked"
    abandon(second)


def test_one_that_cannot_be_made_again_is_a_cause(base: str) -> None:
    parent = Path(base, "parent")
    parent.mkdir()
    directory = RunDirectory.create(str(parent), 1)
    directory.path.rmdir()
    parent.rmdir()
    cause = directory.keep(10.0, lambda line: None)
    assert (
        cause == f"the run directory {directory.path} was deleted: {parent} cannot be used: No such file or directory"
    )
    abandon(directory)


def test_nothing_else_is_touched(base: str) -> None:
    others = [Path(base, name) for name in (f"quartet-{os.getuid() + 1}-0", "quartet", "work")]
    for other in others:
        other.mkdir()
        (other / "file").touch()
    os.close(RunDirectory.create(base, 1)._lock_fd)
    assert all((other / "file").exists() for other in others)


def test_a_link_to_somewhere_else_is_not_followed(base: str) -> None:
    target = Path(base, "precious")
    target.mkdir()
    (target / "lock").touch()
    Path(base, f"{PREFIX}bad").symlink_to(target)
    abandon(RunDirectory.create(base, 1))
    assert (target / "lock").exists()


def test_where_it_is_made_by_default(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    directory = RunDirectory.create("", 3)
    assert directory.path.parent == Path(base)
    abandon(directory)


def test_the_runtime_directory_of_a_unit_comes_first(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(base, "unit").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{base}/unit:{base}/other")
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    directory = RunDirectory.create("", 3)
    assert directory.path.parent == Path(base, "unit")
    abandon(directory)


def spoil_missing(path: Path) -> None: ...


def spoil_file(path: Path) -> None:
    path.touch()


def spoil_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_file, spoil_loop])
def test_an_unusable_default_is_replaced_and_named(
    base: str, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", base)
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{base}/runtime")
    spoil(Path(base, "runtime"))
    lines: list[str] = []
    directory = RunDirectory.create("", 3, lines.append)
    assert directory.path.parent == Path(base)
    (line,) = lines
    assert line.startswith(f"XDG_RUNTIME_DIR {base}/runtime cannot be used: ") and line.endswith(str(directory.path))
    abandon(directory)


def test_a_default_that_is_too_long_is_replaced_and_named(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"{base}/{'t' * 100}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{base}/{'x' * 100}")
    for name in "tx":
        Path(base, name * 100).mkdir()
    lines: list[str] = []
    directory = RunDirectory.create("", 3, lines.append)
    assert directory.path.parent == Path("/tmp")
    assert [line.split(" /")[0] for line in lines] == ["XDG_RUNTIME_DIR", "the folder of temporary files"]
    directory.remove()
    abandon(directory)


def test_a_default_without_sockets_is_replaced_and_leaves_nothing(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe(socket.socket):
        def bind(self, address: Any) -> None:
            if address.startswith(f"{base}/runtime"):
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            super().bind(address)

    Path(base, "runtime").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", base)
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{base}/runtime")
    monkeypatch.setattr(socket, "socket", Probe)
    directory = RunDirectory.create("", 3, lambda line: None)
    assert directory.path.parent == Path(base) and os.listdir(f"{base}/runtime") == []
    abandon(directory)


def test_no_usable_default_is_one_line_with_all_of_them(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_usable() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    def refuse(path: Path, mode: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    words = rf"^XDG_RUNTIME_DIR {base} cannot .*; the folder of temporary files /tmp cannot .* choose .* --run-dir$"
    with pytest.raises(ConfigError, match=words):
        RunDirectory.create("", 3)


def test_a_base_that_is_missing_is_a_setting_at_fault(base: str) -> None:
    with pytest.raises(ConfigError, match=r"--run-dir .*/missing cannot be used: No such file"):
        RunDirectory.create(f"{base}/missing", 1)


def test_a_base_that_is_a_file_is_a_setting_at_fault(base: str) -> None:
    Path(base, "file").touch()
    with pytest.raises(ConfigError, match=r"--run-dir .*/file cannot be used: Not a directory"):
        RunDirectory.create(f"{base}/file", 1)


def test_a_path_is_refused_exactly_where_sockets_do_not_fit(base: str) -> None:
    launch_bytes = len(f"/{PREFIX}{1:016x}/{LONGEST_NAME}")
    for excess in (0, 1):
        parent = Path(base, "d" * (MAX_SOCKET_PATH_BYTES + excess - launch_bytes - len(base) - 1))
        parent.mkdir()
        if excess:
            with pytest.raises(ConfigError, match=r"--run-dir .* is too long a path for sockets"):
                RunDirectory.create(str(parent), 1)
            assert os.listdir(parent) == []
            continue
        directory = RunDirectory.create(str(parent), 1)
        path = directory.path / LONGEST_NAME
        assert len(os.fsencode(path)) == MAX_SOCKET_PATH_BYTES
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        abandon(directory)


def test_bytes_count_and_not_characters(base: str) -> None:
    with pytest.raises(ConfigError, match="too long"):
        RunDirectory.create(f"{base}/{'ü' * 30}", 1)


def test_no_process_has_a_longer_name_than_was_reckoned_with() -> None:
    server = ServerConfig(api_procs=64, tokenizer_procs=64, detok_procs=64)
    longest = max(len(spec.name) for spec in plan_processes(Config(server=server)))
    assert longest + len(".sock") == len(LONGEST_NAME)
