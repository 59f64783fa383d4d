"""The actor as the runtime drives it, with the real engine client: frames in, HTTP out, drain, close."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest
from fake_engine import MODEL

from api_proc.actor import ApiActor
from quartet.runtime.clock import MonotonicClock
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.frames import (
    Abort,
    Accepted,
    Delta,
    DeltaItem,
    Encode,
    Encoded,
    Finish,
    ProcessStatus,
    ProcessTable,
    Submit,
    Timings,
    pack_ids,
)
from quartet.wire.ids import Epoch, Role, process_name

EPOCH = Epoch(1)
FROM = Source(Role.SCHEDULER, 0, EPOCH)
CONFIG = Config(resolved=MODEL)
NO_PROCESSES = ProcessTable([], False)


@dataclass
class FakeContext:
    """A runtime that keeps sent frames, and answers as the tokenizer and the scheduler do."""

    listen_fd: int
    role: Role = Role.API
    rank: int = 0
    epoch: Epoch = EPOCH
    name: str = "api-0"
    config: Config = CONFIG
    clock: MonotonicClock = field(default_factory=MonotonicClock)
    process_table: ProcessTable = NO_PROCESSES
    sent: list[tuple[str, msgspec.Struct]] = field(default_factory=list)
    submitted: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    actor: Any = None

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        self.sent.append((destination, frame))
        loop = asyncio.get_running_loop()
        if isinstance(frame, Encode):
            answer = Encoded(frame.job, pack_ids([1, 2, 3]), "text", frame.params)
            loop.call_soon(self.actor.on_frame, FROM, answer)
        elif isinstance(frame, Submit):
            loop.call_soon(self.actor.on_frame, FROM, Accepted(frame.rid, frame.choice, frame.attempt, 9))
            self.submitted.set()
        elif isinstance(frame, Abort):
            self.aborted.set()

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None: ...

    def progress(self) -> None: ...

    @property
    def submit(self) -> Submit:
        return next(frame for _, frame in self.sent if isinstance(frame, Submit))

    def delta(self, index: int, text: str, offset: int, is_last: bool) -> None:
        finish = Finish("stop", None, index + 1, Timings(cached_tokens=1)) if is_last else None
        submit = self.submit
        item = DeltaItem(
            submit.rid, submit.choice, submit.attempt, index, pack_ids([index]), text, offset, None, finish
        )
        self.actor.on_frame(FROM, Delta([item]))


def table(is_draining: bool = False) -> ProcessTable:
    roles = (Role.API, Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)
    return ProcessTable([ProcessStatus(role, 0, 1, Epoch(1), "ready", "", 0) for role in roles], is_draining)


@dataclass
class Running:
    context: FakeContext
    actor: ApiActor
    url: str
    http: aiohttp.ClientSession

    def ask(self, is_stream: bool) -> asyncio.Task[tuple[int, str]]:
        async def ask() -> tuple[int, str]:
            body = {"messages": [{"role": "user", "content": "hi"}], "stream": is_stream}
            async with self.http.post(self.url + "/v1/chat/completions", json=body) as response:
                return response.status, await response.text()

        return asyncio.create_task(ask())


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    context = FakeContext(listener.detach())
    actor = context.actor = ApiActor(context)
    facts = await actor.start()
    assert facts["port"] == port
    async with aiohttp.ClientSession() as session:
        yield Running(context, actor, f"http://127.0.0.1:{port}", session)
    await actor.close()


async def test_a_request_from_http_to_frames_and_back(running: Running) -> None:
    assert (await running.http.get(running.url + "/health")).status == 503
    running.actor.on_process_table(table())
    assert (await running.http.get(running.url + "/ready")).status == 200
    answer = running.ask(is_stream=True)
    await running.context.submitted.wait()
    await asyncio.sleep(0.02)
    running.context.delta(0, "Hel", 0, False)
    running.context.delta(0, "Hel", 0, False)
    running.context.delta(1, "lo", 3, True)
    status, text = await answer
    assert status == 200
    assert text.count('"content":"Hel"') == 1
    assert text.endswith("data: [DONE]\n\n")
    assert process_name(Role.SCHEDULER, 0) in {destination for destination, _ in running.context.sent}
    metrics = running.actor.metrics()
    assert metrics.counters['requests{finish_reason="stop"}'] == 1
    assert metrics.gauges["open_requests"] == 0


async def test_before_the_engine_is_ready_requests_get_503(running: Running) -> None:
    status, text = await running.ask(is_stream=True)
    assert status == 503
    assert '"error"' in text


@pytest.mark.parametrize("is_stream", [True, False])
async def test_drain_lets_open_answers_finish(running: Running, is_stream: bool) -> None:
    running.actor.on_process_table(table())
    answer = running.ask(is_stream)
    await running.context.submitted.wait()
    await asyncio.sleep(0.02)
    running.actor.on_process_table(table(is_draining=True))
    drain = asyncio.create_task(running.actor.drain(5.0))
    await asyncio.sleep(0.02)
    refused, text = await running.ask(is_stream)
    assert refused == 503
    assert '"draining"' in text
    running.context.delta(0, "all of it", 0, True)
    status, text = await answer
    assert status == 200
    assert "all of it" in text
    async with asyncio.timeout(1):
        await drain


@pytest.mark.parametrize("is_stream", [True, False])
async def test_drain_ends_what_is_left_at_the_limit(running: Running, is_stream: bool) -> None:
    running.actor.on_process_table(table())
    answer = running.ask(is_stream)
    await running.context.submitted.wait()
    await asyncio.sleep(0.02)
    async with asyncio.timeout(1.5):
        await running.actor.drain(0.1)
    status, text = await answer
    assert status == (200 if is_stream else 503)
    assert '"draining"' in text
    if is_stream:
        assert text.endswith("data: [DONE]\n\n")
    assert running.context.aborted.is_set()


async def test_a_client_that_leaves_sends_an_abort_frame(running: Running) -> None:
    running.actor.on_process_table(table())
    answer = running.ask(is_stream=True)
    await running.context.submitted.wait()
    await asyncio.sleep(0.02)
    answer.cancel()
    async with asyncio.timeout(2):
        await running.context.aborted.wait()
