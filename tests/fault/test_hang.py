"""A process that hangs is found within two seconds and replaced; one that only pauses is not."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server

pytestmark = pytest.mark.e2e
SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in ("tokenizer-0", "scheduler-0", "detok-0")]
BODY: dict[str, Any] = {"model": "smollm2", "prompt": "Count:", "max_tokens": 250, "temperature": 0}
FOUND_S = 4.0
"""Time for what takes two seconds, on a machine that is short of CPU."""


POINTS = {
    "detok.recv.Tokens": "busy, no heartbeat for 1.75 s",
    "scheduler.recv.StepResult": "busy, no heartbeat for 1.75 s",
    "tokenizer.recv.Encode": "busy, no heartbeat for 1.75 s",
    # In the worker a thread does the work, while the main loop goes on.
    "worker.recv.Step": "no progress in phase 'idle' for 10 s",
    "worker.mid_step": "no progress in phase 'step' for 3 s",
}
"""Where a busy loop begins, and how it is found."""


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arms")


@pytest.fixture(scope="module")
def server(arms: Path) -> Iterator[Server]:
    faults = ";".join(f"{point}=hang,armed={arms / point}" for point in POINTS)
    flags = ("--simulated-worker", "--simulated-step-ms", "5", "--step-timeout", "3")
    with Server(*flags, env={"QUARTET_FAILPOINTS": faults}) as it:
        yield it


def restarts(server: Server) -> dict[str, int]:
    return {name: row["restarts"] for name, row in server.topology().items()}


def wait_until_recovered(server: Server) -> None:
    server.wait_until(lambda: server.get("/ready")[0] == 200)


@pytest.mark.parametrize("name", ["worker-0", *SLOWLY])
async def test_a_stopped_process_is_replaced_and_streams_go_on(server: Server, name: str) -> None:
    calm = await stream_completion(server.url, BODY)
    before, pid = restarts(server), server.pid(name)
    seen: list[tuple[str, int, int]] = []

    async def stop(answer: Answer) -> None:
        if answer.events == 30:
            os.kill(pid, signal.SIGSTOP)
            watch.append(asyncio.create_task(asyncio.to_thread(follow)))

    def follow() -> None:
        """Note probes and state until the process is gone."""
        start_s = time.monotonic()
        while os.path.exists(f"/proc/{pid}"):
            seen.append((server.topology()[name]["state"], server.get("/ready")[0], server.get("/health")[0]))
            time.sleep(0.02)
        took_s.append(time.monotonic() - start_s)

    watch: list[asyncio.Task[None]] = []
    took_s: list[float] = []
    shaken = await stream_completion(server.url, BODY, stop)
    await watch[0]
    assert shaken.text == calm.text and shaken.is_done and shaken.finish == "length"
    assert took_s[0] < FOUND_S
    assert {health for _, _, health in seen} == {200}
    assert {ready for state, ready, _ in seen if state == "unresponsive"} == {503}
    await asyncio.to_thread(wait_until_recovered, server)
    assert restarts(server) == {**before, name: before[name] + 1}


@pytest.mark.parametrize(
    "point", [pytest.param(name, marks=() if index == 0 else pytest.mark.slow) for index, name in enumerate(POINTS)]
)
async def test_a_busy_process_is_replaced_and_streams_go_on(server: Server, arms: Path, point: str) -> None:
    """It is found by the heartbeats that its main loop, and no other thread, does not send."""
    name = f"{point.partition('.')[0]}-0"
    calm = await stream_completion(server.url, BODY)
    before = restarts(server)
    (arms / point).touch()
    shaken = await stream_completion(server.url, BODY)
    assert shaken.text == calm.text and shaken.is_done and shaken.finish == "length"
    assert any(f"{name} (pid" in line and f"hangs: {POINTS[point]}; killed" in line for line in server.output)
    await asyncio.to_thread(wait_until_recovered, server)
    assert restarts(server) == {**before, name: before[name] + 1}


@pytest.mark.slow
def test_a_stopped_api_process_is_replaced(server: Server) -> None:
    before, pid = restarts(server), server.pid("api-0")
    os.kill(pid, signal.SIGSTOP)
    start_s = time.monotonic()
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.02)
    assert time.monotonic() - start_s < FOUND_S
    wait_until_recovered(server)
    assert restarts(server) == {**before, "api-0": before["api-0"] + 1}


def test_a_pause_of_a_second_is_none(server: Server) -> None:
    before = restarts(server)
    pids = [row["pid"] for row in server.topology().values()]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(0.9)
    assert restarts(server) == before
    wait_until_recovered(server)


async def test_a_pause_of_the_supervisor_ends_no_process(server: Server) -> None:
    before = restarts(server)

    async def pause(answer: Answer) -> None:
        if answer.events == 30:
            os.kill(server.process.pid, signal.SIGSTOP)
            await asyncio.sleep(3)
            os.kill(server.process.pid, signal.SIGCONT)

    answer = await stream_completion(server.url, BODY, pause)
    assert answer.is_done and answer.finish == "length"
    await asyncio.sleep(1.0)
    assert restarts(server) == before


@pytest.mark.slow
def test_a_pause_of_all_processes_ends_none(server: Server) -> None:
    """As by a terminal's Ctrl-Z, or of the machine."""
    before = restarts(server)
    pids = server.processes()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            os.kill(pid, number)
        time.sleep(3.0)
    assert restarts(server) == before
    wait_until_recovered(server)
