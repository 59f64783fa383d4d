"""Twenty schemas through real processes, ten times each: valid, and the same bytes if the worker dies in mid-object."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.json_schemas import SCHEMAS
from tests.support.server import Server
from tests.support.valid_json import problem

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
EACH = 10
MIDDLE = 6
"""Events of the first stream of a schema before the worker dies."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--simulated-worker", "--simulated-step-ms", "4", "--restart-limit", "100") as it:
        yield it


def body(name: str, number: int) -> dict[str, Any]:
    schema = {"type": "json_schema", "json_schema": {"name": "one", "schema": SCHEMAS[name], "strict": False}}
    return {"model": "smollm2", "prompt": f"{number}: {name}", "max_tokens": 2000, "response_format": schema}


async def answers(server: Server, name: str, is_disturbed: bool) -> list[Answer]:
    """Stream all answers of a schema at once, beside one without a grammar; kill the worker in the middle of one."""

    async def on_event(answer: Answer) -> None:
        if answer.events == MIDDLE:
            await asyncio.to_thread(server.kill, "worker-0")

    plain = {"model": "smollm2", "prompt": name, "max_tokens": 40, "ignore_eos": True}
    bodies = [plain, *(body(name, number) for number in range(EACH))]
    killer = on_event if is_disturbed else None
    return [
        *await asyncio.gather(*(stream_completion(server.url, one, killer if one is plain else None) for one in bodies))
    ]


@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_schema(server: Server, name: str) -> None:
    calm = await answers(server, name, is_disturbed=False)
    shaken = await answers(server, name, is_disturbed=True)
    assert [answer.finish for answer in calm] == ["length", *["stop"] * EACH]
    for answer in calm[1:]:
        assert problem(answer.text, SCHEMAS[name]) is None, answer.text
    assert [answer.error for answer in shaken] == [None] * len(shaken), server.output[-20:]
    assert all(answer.is_done for answer in shaken)
    assert [answer.text for answer in shaken] == [answer.text for answer in calm]
