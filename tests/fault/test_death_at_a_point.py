"""Real processes end at exact points, once each, while streams run: every text is that of an undisturbed run."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import stream_completion
from tests.support.leaks import metrics
from tests.support.server import Server

pytestmark = pytest.mark.e2e
POINTS = {
    "tokenizer.recv.Encode": "tokenizer-0",
    "tokenizer.before_reply": "tokenizer-0",
    "scheduler.recv.Submit": "scheduler-0",
    "scheduler.after_recv": "scheduler-0",
    "scheduler.after_dispatch": "scheduler-0",
    "worker.mid_step": "worker-0",
    "worker.before_send": "worker-0",
    "detok.recv.Open": "detok-0",
    "detok.after_decode": "detok-0",
}
FRAMES = [
    "scheduler.send.Tokens=duplicate,every=7",
    "detok.send.Delta=duplicate,every=5",
    "detok.recv.Tokens=drop,every=60",
    "detok.send.Delta=damage,every=50",
]
BODIES: list[dict[str, Any]] = [
    {"model": "smollm2", "prompt": f"Tell me about number {i}.", "max_tokens": 60 + 10 * i, "temperature": 0, **extra}
    for i, extra in enumerate(({}, {"echo": True}, {"logprobs": 2}, {"stop": ["\0"], "min_tokens": 20}))
]


async def texts(server: Server) -> list[str]:
    answers = await asyncio.gather(*(stream_completion(server.url, body) for body in BODIES))
    assert all(answer.is_done and answer.finish == "length" and answer.error is None for answer in answers)
    return [answer.text for answer in answers]


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arms")


@pytest.fixture(scope="module", params=[(), ("--standby",)], ids=["alone", "with a standby"])
def server(request: pytest.FixtureRequest, arms: Path) -> Iterator[Server]:
    faults = ";".join(f"{point}=crash,armed={arms / point}" for point in POINTS)
    flags = ("--simulated-worker", "--simulated-step-ms", "3", "--restart-limit", "100", *request.param)
    with Server(*flags, env={"QUARTET_FAILPOINTS": faults}) as it:
        yield it


@pytest.mark.parametrize("point", POINTS)
async def test_a_death_at_a_point(server: Server, arms: Path, point: str) -> None:
    name = POINTS[point]
    calm = await texts(server)
    before = server.topology()[name]["restarts"]
    timed = metrics(server)["quartet_time_to_first_token_seconds_count"]
    (arms / point).touch()
    assert await texts(server) == calm
    assert metrics(server)["quartet_time_to_first_token_seconds_count"] == timed + len(BODIES), "a replay was timed"
    assert not (arms / point).exists(), "the point was not reached"
    server.wait_until(lambda: server.topology()[name]["restarts"] == before + 1 and server.get("/ready")[0] == 200)


async def test_frames_are_doubled_lost_and_damaged() -> None:
    flags = ("--simulated-worker", "--simulated-step-ms", "3")
    with Server(*flags) as calm_server:
        calm = await texts(calm_server)
    with Server(*flags, env={"QUARTET_FAILPOINTS": ";".join(FRAMES)}) as shaken:
        assert await texts(shaken) == calm
        assert all(row["restarts"] == 0 for row in shaken.topology().values())


def test_a_text_that_cannot_be_read_ends_the_launch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quartet.cli.main", "serve", "--simulated-worker", "--port", "0"]
    environment = {**os.environ, "QUARTET_FAILPOINTS": "clerk.start=crash"}
    finished = subprocess.run(
        [*command, "--run-dir", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert finished.returncode == 2
    assert "QUARTET_FAILPOINTS: 'clerk.start=crash': there is no such point" in finished.stdout + finished.stderr
