"""Signals to the whole process group, as terminals, systemd and `timeout` send them: the launch drains."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server, alive, free_port
from tests.unit.quartet.checkpoint.gguf_models import write_gguf

pytestmark = pytest.mark.e2e
BODY: dict[str, Any] = {"model": "smollm2", "prompt": "Count:", "max_tokens": 60, "temperature": 0}
FLAGS = ("--simulated-worker", "--simulated-step-ms", "20")
TWICE_S = 0.005


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGTERM],
        [signal.SIGHUP],
        [signal.SIGINT],
        [signal.SIGTERM, signal.SIGTERM],
        [signal.SIGTERM, signal.SIGHUP],
        [signal.SIGHUP, signal.SIGHUP],
    ],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
async def test_a_group_drains(numbers: list[signal.Signals]) -> None:
    with Server(*FLAGS, start_new_session=True) as server:
        pids = server.processes()

        async def stop(answer: Answer) -> None:
            if answer.events == 10:
                for number in numbers:
                    os.killpg(server.process.pid, number)
                    await asyncio.sleep(TWICE_S)

        answer = await stream_completion(server.url, BODY, stop)
        assert answer.is_done and answer.finish == "length" and answer.error is None
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        assert not [line for line in server.output if "ended by" in line], server.output
        server.wait_until(lambda: alive(pids) == [], 3)


async def test_a_process_that_is_being_restarted_is_not_lost_to_the_signal() -> None:
    """The worker is signalled before its own code runs."""
    with Server(*FLAGS, start_new_session=True) as server:

        async def stop(answer: Answer) -> None:
            if answer.events == 10:
                server.kill("worker-0")
                server.wait_until(lambda: server.topology()["worker-0"]["restarts"] == 1)
                assert server.topology()["worker-0"]["last_cause"].startswith("signal SIG")
                os.killpg(server.process.pid, signal.SIGTERM)

        answer = await stream_completion(server.url, BODY, stop)
        assert answer.is_done and answer.finish == "length" and answer.error is None
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        assert len([line for line in server.output if "ended by" in line]) == 1, server.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_process_ignores_it(number: signal.Signals) -> None:
    with Server(*FLAGS) as server:
        for name in server.topology():
            server.kill(name, number)
        time.sleep(0.5)
        assert {row["restarts"] for row in server.topology().values()} == {0}


async def test_nohup_is_respected() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with Server(*FLAGS, start_new_session=True, preexec_fn=ignore) as server:
        os.killpg(server.process.pid, signal.SIGHUP)
        answer = await stream_completion(server.url, BODY)
        assert answer.is_done and answer.finish == "length"
        assert server.get("/ready")[0] == 200


def test_timeout_drains_it() -> None:
    """`timeout` sends the signal to its child, and then to the group."""
    command = ["timeout", "4", sys.executable, "-m", "quartet.cli.main", "serve", "--port", str(free_port()), *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 124 and "draining" in done.stderr and "ended by" not in done.stderr, done


@pytest.mark.parametrize("target", ["group", "leader"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_ends_with_the_launch(number: signal.Signals, target: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf")
    cache = {"QUARTET_CACHE_DIR": str(tmp_path / "cache")}
    # A writer that holds the lock of the cache entry keeps the converter waiting.
    command = [sys.executable, "-m", "quartet.cli.main", "serve", str(tmp_path / "toy.gguf"), *FLAGS]
    script = (
        "import fcntl, sys\nfrom pathlib import Path\nfrom quartet.checkpoint.cache import entry_path\n"
        "entry = entry_path(Path(sys.argv[1]))\nentry.parent.mkdir(parents=True)\n"
        "file = open(f'{entry}.lock', 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\nprint('held', flush=True)\n"
        "sys.stdin.read()"
    )
    environment = {**os.environ, **cache}
    with (
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "toy.gguf")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        ) as holder,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True) as launch,
    ):
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            assert launch.stderr is not None and "waiting for it" in launch.stderr.readline()
            children = [int(pid) for pid in Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()]
            (os.killpg if target == "group" else os.kill)(launch.pid, number)
            assert launch.wait(10) == 0
            assert children and alive(children) == []
        finally:
            launch.kill()
            holder.kill()
