"""The janitor removes the run directory when its launch ends, however it ends."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def base() -> Iterator[str]:
    """A short path, so that it is never too long for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield path


LAUNCH = """
import sys, time
from quartet.supervisor.rundir import RunDirectory
directory = RunDirectory.create(sys.argv[1], 5)
directory.start_janitor()
(directory.path / "api-0.sock").touch()
print(directory.path, flush=True)
sys.stdin.read()
directory.remove()
"""


@pytest.fixture
def launch(base: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", LAUNCH, base]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def wait_until_gone(path: Path) -> None:
    deadline = time.monotonic() + 5
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not path.exists()


def test_it_is_removed_after_sigkill(launch: "subprocess.Popen[str]") -> None:
    assert launch.stdout is not None
    path = Path(launch.stdout.readline().strip())
    assert path.exists()
    launch.send_signal(signal.SIGKILL)
    assert launch.wait(5) == -signal.SIGKILL
    wait_until_gone(path)


def test_the_janitor_closes_the_output(launch: "subprocess.Popen[str]") -> None:
    assert launch.stdin is not None and launch.stdout is not None
    launch.stdout.readline()
    launch.stdin.close()
    assert launch.wait(5) == 0
    assert launch.stdout.read() == "", "end of file: no process holds the pipe"


def test_the_janitor_does_not_hold_the_lock(launch: "subprocess.Popen[str]") -> None:
    assert launch.stdout is not None
    path = Path(launch.stdout.readline().strip())
    janitors = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
    assert len(janitors) == 1
    settled = Path(f"/proc/{janitors[0]}/fd/1")
    while os.readlink(settled) != os.devnull:
        time.sleep(0.005)
    os.kill(int(janitors[0]), signal.SIGSTOP)
    try:
        launch.kill()
        launch.wait(5)
        lock_fd = os.open(path, os.O_RDONLY)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock_fd)
    finally:
        os.kill(int(janitors[0]), signal.SIGCONT)
    wait_until_gone(path)
