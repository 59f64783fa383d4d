"""One process is killed while streams run: they pause and go on, and their text is that of an undisturbed run."""

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server
from tests.support.sinks import sink_or_none

pytestmark = pytest.mark.e2e
ROLES = ["tokenizer-0", "scheduler-0", "worker-0", "detok-0"]


@pytest.fixture(scope="module", params=["output is read", "full disk"])
def simulated(request: pytest.FixtureRequest) -> Iterator[Server]:
    with sink_or_none(request.param) as sink, Server("--simulated-worker", "--simulated-step-ms", "4", sink=sink) as it:
        yield it


@pytest.fixture(scope="module")
def real() -> Iterator[Server]:
    with Server("--dtype", "float32", "--max-total-tokens", "8192") as server:
        yield server


async def disturbed(server: Server, body: dict[str, Any], name: str, after_events: int) -> Answer:
    """Stream, and kill process `name` when `after_events` events have come."""

    async def kill(answer: Answer) -> None:
        if answer.events == after_events:
            server.kill(name, signal.SIGKILL)

    return await stream_completion(server.url, body, kill)


def check_restarted_once(server: Server, name: str, before: int) -> None:
    # Streams that need nothing of the process may end before its death is noticed.
    server.wait_until(lambda: server.topology()[name]["restarts"] > before and server.get("/ready")[0] == 200)
    assert server.topology()[name]["restarts"] == before + 1


@pytest.mark.parametrize("name", ROLES)
async def test_simulated_streams_survive_a_kill(simulated: Server, name: str) -> None:
    bodies = [
        {"model": "smollm2", "prompt": f"Tell me about number {i}.", "max_tokens": 200, "temperature": 0, "seed": i}
        for i in range(8)
    ]
    calm = await asyncio.gather(*(stream_completion(simulated.url, body) for body in bodies))
    restarts = simulated.topology()[name]["restarts"]
    others = [stream_completion(simulated.url, body) for body in bodies[1:]]
    shaken = await asyncio.gather(disturbed(simulated, bodies[0], name, 40), *others)
    assert [answer.text for answer in shaken] == [answer.text for answer in calm]
    assert all(answer.is_done and answer.finish == "length" for answer in shaken)
    check_restarted_once(simulated, name, restarts)


@pytest.mark.parametrize("name", ROLES)
async def test_a_stream_of_the_real_model_survives_a_kill(real: Server, name: str) -> None:
    body = {
        "model": "smollm2",
        "prompt": "The three primary colours are",
        "max_tokens": 40,
        "temperature": 0.8,
        "seed": 11,
        "ignore_eos": True,
    }
    calm = await stream_completion(real.url, body)
    restarts = real.topology()[name]["restarts"]
    shaken = await disturbed(real, body, name, 10)
    assert shaken.text == calm.text
    assert shaken.is_done and shaken.finish == calm.finish
    check_restarted_once(real, name, restarts)
