"""Requests that end a process each time it works on them, among many others, in a real launch.

Found within a few deaths, refused when they come again; the others never notice.
"""

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server

pytestmark = pytest.mark.e2e
POISON = [66, 67, 68, 69]
OTHERS: list[dict[str, Any]] = [
    {"model": "smollm2", "prompt": [100 + i, 20, 30], "max_tokens": 60, "temperature": 0} for i in range(39)
]
POINTS = {"worker": "recv.Step", "detok": "recv.Open", "tokenizer": "recv.Encode", "scheduler": "recv.Submit"}
MOST_RESTARTS = {"exit:1": 3, "crash": 3}
MOST_KILLS_OF_DETOK = 5
"""A SIGKILL, which may come from outside, says less about what a detokenizer or scheduler held."""


def poison(number: int = 0) -> dict[str, Any]:
    return {**OTHERS[0], "prompt": [*POISON, number]}


def launch(role: str, action: str) -> Server:
    fault = f"{role}.{POINTS[role]}={action},ids={'.'.join(map(str, POISON))}"
    flags = ("--simulated-worker", "--simulated-step-ms", "3", "--max-running-requests", "64")
    return Server(*flags, env={"QUARTET_FAILPOINTS": fault})


async def refusal(server: Server, body: dict[str, Any]) -> tuple[int, str]:
    """Return status and code of a request that is to fail."""
    async with aiohttp.ClientSession() as session, session.post(server.url + "/v1/completions", json=body) as response:
        return response.status, (await response.json())["error"]["code"]


async def calm_texts(server: Server) -> list[str]:
    return [answer.text for answer in await asyncio.gather(*(stream_completion(server.url, body) for body in OTHERS))]


def check(answers: list[Answer], calm: list[str]) -> None:
    assert [answer.text for answer in answers] == calm
    assert all(answer.is_done and answer.finish == "length" and answer.error is None for answer in answers)


def restarts(server: Server, role: str) -> int:
    return sum(row["restarts"] for name, row in server.topology().items() if name.startswith(role))


@pytest.mark.parametrize(
    ("role", "action"),
    [
        ("worker", "exit:1"),
        ("worker", "crash"),
        ("detok", "exit:1"),
        pytest.param("detok", "crash", marks=pytest.mark.slow),
        pytest.param("tokenizer", "exit:1", marks=pytest.mark.slow),
        ("tokenizer", "crash"),
        pytest.param("scheduler", "exit:1", marks=pytest.mark.slow),
    ],
)
async def test_a_poison_among_39_others(role: str, action: str) -> None:
    with launch(role, action) as server:
        calm = await calm_texts(server)
        streams = [asyncio.create_task(stream_completion(server.url, body)) for body in OTHERS]
        await asyncio.sleep(0.05)
        assert await refusal(server, poison()) == (500, "request_quarantined")
        check(list(await asyncio.gather(*streams)), calm)
        count = restarts(server, role)
        assert count <= (MOST_KILLS_OF_DETOK if (role, action) == ("detok", "crash") else MOST_RESTARTS[action])
        assert await refusal(server, poison()) == (422, "request_quarantined")
        assert restarts(server, role) == count
        check([await stream_completion(server.url, OTHERS[0])], calm[:1])


async def test_two_poisons_of_the_worker_in_one_batch() -> None:
    with launch("worker", "exit:1") as server:
        calm = await calm_texts(server)
        streams = [asyncio.create_task(stream_completion(server.url, body)) for body in OTHERS]
        await asyncio.sleep(0.05)
        refused = await asyncio.gather(refusal(server, poison(1)), refusal(server, poison(2)))
        assert list(refused) == [(500, "request_quarantined")] * 2
        check(list(await asyncio.gather(*streams)), calm)
        assert restarts(server, "worker") <= 6
