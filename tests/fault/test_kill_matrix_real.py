"""The kill matrix on real processes with SmolLM2 in fp32: each role dies in each phase of a request, greedy and seeded.

tests/fault/test_kill_matrix.py has the same cells to the frame; here a phase begins at an event that the client sees.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROLES = ("tokenizer-0", "scheduler-0", "worker-0", "detok-0")
TOKENS = 24
LONG = "count the ships " * 150
PHASES: dict[str, int | float] = {
    "queued": 0.05,
    "tokenising": 0.0,
    "prefill chunk": 0.3,
    "first token": 1,
    "mid": TOKENS // 2,
    "last token": TOKENS - 1,
    "after finish": TOKENS + 1,
}
"""Seconds after the request is sent, or the number of its event."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--dtype", "float32", "--max-total-tokens", "8192", "--chunked-prefill-size", "128")
    with Server(*flags, "--max-running-requests", "2", "--restart-limit", "100") as it:
        yield it


def body(phase: str, seeded: bool, number: int) -> dict[str, Any]:
    sampling = {"temperature": 0.8, "seed": 11 + number} if seeded else {"temperature": 0}
    prompt = f"{number}: " + (LONG if phase == "prefill chunk" else "The three primary colours are")
    return {"model": "smollm2", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, **sampling}


async def disturbed(server: Server, one: dict[str, Any], name: str, when: float) -> Answer:
    """Stream, and kill a process so many seconds after the request, or events into its answer."""

    async def on_event(answer: Answer) -> None:
        if isinstance(when, int) and answer.events == when:
            await asyncio.to_thread(server.kill, name)

    stream = asyncio.create_task(stream_completion(server.url, one, on_event))
    if isinstance(when, float):
        await asyncio.sleep(when)
        await asyncio.to_thread(server.kill, name)
    answer = await stream
    if isinstance(when, int) and when > answer.events:
        await asyncio.to_thread(server.kill, name)
    return answer


@pytest.mark.parametrize("name", ROLES)
@pytest.mark.parametrize("phase", PHASES)
async def test_a_cell(server: Server, phase: str, name: str) -> None:
    seeded = len(phase + name) % 2 == 1
    others = 4 if phase == "queued" else 1
    bodies = [body(phase, seeded, number) for number in range(others + 1)]
    calm = [await stream_completion(server.url, one) for one in bodies]
    restarts = server.topology()[name]["restarts"]
    running = [asyncio.create_task(stream_completion(server.url, one)) for one in bodies[1:]]
    if phase == "queued":
        await asyncio.sleep(0.1)
    shaken = [await disturbed(server, bodies[0], name, PHASES[phase]), *(await asyncio.gather(*running))]
    again = await stream_completion(server.url, bodies[0])
    assert [answer.text for answer in [*shaken, again]] == [answer.text for answer in [*calm, calm[0]]]
    assert all(answer.is_done and answer.finish == "length" and not answer.error for answer in [*shaken, again])
    server.wait_until(lambda: server.get("/ready")[0] == 200, 60.0)
    assert server.topology()[name]["restarts"] == restarts + 1
