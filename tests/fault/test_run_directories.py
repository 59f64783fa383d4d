"""Launches that share a base directory: a live one is left alone, a dead one's directory is reclaimed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.server import Server, alive

pytestmark = pytest.mark.e2e
REFUSED_S = 6.0
"""Time for a refusal that takes less than two seconds, on a machine that is short of CPU."""


@pytest.mark.slow
def test_a_live_directory_is_left_alone_and_a_dead_one_is_reclaimed() -> None:
    with Server("--simulated-worker") as first:
        (live,) = first.base.iterdir()
        listed = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text()
        children = [int(pid) for pid in listed.split()]
        (janitor,) = set(children) - {row["pid"] for row in first.topology().values()}
        with Server("--simulated-worker", "--run-dir", str(first.base)) as second:
            assert live in first.base.iterdir() and len(list(first.base.iterdir())) == 2
            assert [server.get("/ready")[0] for server in (first, second)] == [200, 200]
            second.process.terminate()
            second.process.wait(20)
        # As a power cut leaves it: neither the launch nor its janitor has run to its end.
        os.kill(janitor, signal.SIGKILL)
        first.process.kill()
        first.process.wait(5)
        first.wait_until(lambda: not alive(children))
        assert live.exists()
        with Server("--simulated-worker", "--run-dir", str(first.base)) as third:
            assert not live.exists() and third.get("/ready")[0] == 200


def test_a_refused_start_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "quartet.cli.main", "serve", "--simulated-worker", "--port", str(port)]
        start_s = time.monotonic()
        finished = subprocess.run(
            [*command, "--run-dir", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
        )
    assert time.monotonic() - start_s < REFUSED_S
    assert finished.returncode == 2
    words = f"quartet: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert finished.stderr.splitlines()[-1].startswith(words)
    deadline = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list(tmp_path.iterdir())
