"""A main loop that is busy for ever is found by its missing heartbeats, and streams go on as in an undisturbed run."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import stream_completion
from tests.support.server import Server

pytestmark = pytest.mark.e2e
POINTS = {
    "detok.recv.Tokens": "busy, no heartbeat for 1.75 s",
    "scheduler.recv.StepResult": "busy, no heartbeat for 1.75 s",
    "tokenizer.recv.Encode": "busy, no heartbeat for 1.75 s",
    # In the worker a thread does the work, while the main loop goes on.
    "worker.recv.Step": "no progress in phase 'idle' for 10 s",
    "worker.mid_step": "no progress in phase 'step' for 2 s",
}
QUICK = ("detok.recv.Tokens", "worker.mid_step")
BODIES: list[dict[str, Any]] = [
    {"model": "smollm2", "prompt": f"Tell me about number {i}.", "max_tokens": 100, "temperature": 0} for i in range(4)
]


async def texts(server: Server) -> list[str]:
    answers = await asyncio.gather(*(stream_completion(server.url, body) for body in BODIES))
    assert all(answer.is_done and answer.finish == "length" and answer.error is None for answer in answers)
    return [answer.text for answer in answers]


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arms")


@pytest.fixture(scope="module")
def server(arms: Path) -> Iterator[Server]:
    faults = ";".join(f"{point}=hang,armed={arms / point}" for point in POINTS)
    flags = ("--simulated-worker", "--simulated-step-ms", "5", "--step-timeout", "2")
    with Server(*flags, env={"QUARTET_FAILPOINTS": faults}) as it:
        yield it


@pytest.mark.parametrize(
    "point", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in POINTS]
)
async def test_it_is_found_and_replaced(server: Server, arms: Path, point: str) -> None:
    name = f"{point.partition('.')[0]}-0"
    calm = await texts(server)
    before = server.topology()[name]["restarts"]
    (arms / point).touch()
    assert await texts(server) == calm
    assert any(f"{name} (pid" in line and f"hangs: {POINTS[point]}; killed" in line for line in server.output)
    server.wait_until(lambda: server.topology()[name]["restarts"] == before + 1 and server.get("/ready")[0] == 200)
