"""How a launch ends: drained by SIGTERM, or killed without a trace."""

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server, alive
from tests.support.sinks import sink_or_none

pytestmark = pytest.mark.e2e
BODY: dict[str, Any] = {"model": "smollm2", "prompt": "Count:", "max_tokens": 150, "temperature": 0}


@pytest.fixture(params=["output is read", "full disk", "stuck pipe"])
def sink(request: pytest.FixtureRequest) -> Iterator[int | None]:
    with sink_or_none(request.param) as descriptor:
        yield descriptor


async def test_sigterm_lets_streams_finish_and_exits_0(sink: int | None) -> None:
    with Server("--simulated-worker", "--simulated-step-ms", "5", sink=sink) as server:
        pids = server.processes()

        async def terminate(answer: Answer) -> None:
            if answer.events == 20:
                server.process.send_signal(signal.SIGTERM)

        answer = await stream_completion(server.url, BODY, terminate)
        assert answer.is_done and answer.finish == "length" and answer.error is None
        assert await asyncio.to_thread(server.process.wait, 20) == 0
        await _check_nothing_left(server, pids)


async def test_new_requests_are_refused_while_draining() -> None:
    with Server("--simulated-worker", "--simulated-step-ms", "5") as server:
        refused: list[int] = []

        async def probe(answer: Answer) -> None:
            if answer.events == 20:
                server.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(server.wait_until, lambda: server.get("/ready")[0] == 503)
                with pytest.raises(AssertionError, match="draining"):
                    await stream_completion(server.url, BODY)
                refused.append(1)

        answer = await stream_completion(server.url, {**BODY, "max_tokens": 400}, probe)
        assert answer.is_done and answer.finish == "length"
        assert refused


async def test_a_second_sigterm_stops_at_once(sink: int | None) -> None:
    with Server("--simulated-worker", "--simulated-step-ms", "50", sink=sink) as server:
        stream = asyncio.create_task(stream_completion(server.url, {**BODY, "max_tokens": 2000}))
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 5) == 0
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)


async def test_sigkill_of_the_supervisor_leaves_no_process_and_no_socket(sink: int | None) -> None:
    with Server("--simulated-worker", "--simulated-step-ms", "20", sink=sink) as server:
        stream = asyncio.create_task(stream_completion(server.url, {**BODY, "max_tokens": 2000}))
        await asyncio.sleep(0.5)
        pids = server.processes()
        assert len(pids) >= 6
        server.process.kill()
        await _check_nothing_left(server, pids)
        await asyncio.gather(stream, return_exceptions=True)


async def _check_nothing_left(server: Server, pids: list[int], limit_s: float = 3.0) -> None:
    deadline = time.monotonic() + limit_s
    while (alive(pids) or server.leftovers()) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert alive(pids) == []
    assert server.leftovers() == []
