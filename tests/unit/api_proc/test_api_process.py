"""The process as the runtime drives it, with the real engine client: frames in, HTTP out, drain, close."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import msgspec
import pytest
from fake_engine import MODEL

from api_proc.process import main
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
from tests.support.fake_context import FakeContext, running

EPOCH = Epoch(1)
FROM = Source(Role.SCHEDULER, 0, EPOCH)
CONFIG = Config(resolved=MODEL)


class ApiContext(FakeContext):
    """Stands for the runtime: keeps what is sent, and plays the tokenizer and the scheduler's acceptance."""

    def __init__(self, listen_fd: int) -> None:
        super().__init__(Role.API, CONFIG, listen_fd=listen_fd)
        self.submitted = asyncio.Event()
        self.aborted = asyncio.Event()

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        super().send(destination, frame)
        loop = asyncio.get_running_loop()
        if isinstance(frame, Encode):
            answer = Encoded(frame.job, pack_ids([1, 2, 3]), "text", frame.params)
            loop.call_soon(self.deliver, FROM, answer)
        elif isinstance(frame, Submit):
            loop.call_soon(self.deliver, FROM, Accepted(frame.rid, frame.choice, frame.attempt, 9))
            self.submitted.set()
        elif isinstance(frame, Abort):
            self.aborted.set()

    @property
    def submit(self) -> Submit:
        return next(frame for _, frame in self.sent if isinstance(frame, Submit))

    def delta(self, index: int, text: str, offset: int, is_last: bool) -> None:
        finish = Finish("stop", None, index + 1, Timings(cached_tokens=1)) if is_last else None
        submit = self.submit
        item = DeltaItem(
            submit.rid, submit.choice, submit.attempt, index, pack_ids([index]), text, offset, None, finish
        )
        self.deliver(FROM, Delta([item]))


def table(is_draining: bool = False) -> ProcessTable:
    roles = (Role.API, Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)
    return ProcessTable([ProcessStatus(role, 0, 1, Epoch(1), "ready", "", 0) for role in roles], is_draining)


@dataclass
class Api:
    context: ApiContext
    task: asyncio.Task[None]
    url: str
    http: aiohttp.ClientSession

    def ask(self, is_stream: bool) -> asyncio.Task[tuple[int, str]]:
        async def ask() -> tuple[int, str]:
            body = {"messages": [{"role": "user", "content": "hi"}], "stream": is_stream}
            async with self.http.post(self.url + "/v1/chat/completions", json=body) as response:
                return response.status, await response.text()

        return asyncio.create_task(ask())


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    context = ApiContext(listener.detach())
    async with running(main, context) as task, aiohttp.ClientSession() as session:
        assert context.facts is not None and context.facts["port"] == port
        yield Api(context, task, f"http://127.0.0.1:{port}", session)


async def test_a_request_from_http_to_frames_and_back(api: Api) -> None:
    assert (await api.http.get(api.url + "/health")).status == 503
    api.context.announce(table())
    assert (await api.http.get(api.url + "/ready")).status == 200
    answer = api.ask(is_stream=True)
    await api.context.submitted.wait()
    await asyncio.sleep(0.02)
    api.context.delta(0, "Hel", 0, False)
    api.context.delta(0, "Hel", 0, False)
    api.context.delta(1, "lo", 3, True)
    status, text = await answer
    assert status == 200
    assert text.count('"content":"Hel"') == 1
    assert text.endswith("data: [DONE]\n\n")
    assert process_name(Role.SCHEDULER, 0) in {destination for destination, _ in api.context.sent}
    metrics = api.context.metrics()
    assert metrics.counters['requests{finish_reason="stop"}'] == 1
    assert metrics.gauges["open_requests"] == 0


async def test_before_the_engine_is_ready_requests_get_503(api: Api) -> None:
    status, text = await api.ask(is_stream=True)
    assert status == 503
    assert '"error"' in text


@pytest.mark.parametrize("is_stream", [True, False])
async def test_drain_lets_open_answers_finish(api: Api, is_stream: bool) -> None:
    api.context.announce(table())
    answer = api.ask(is_stream)
    await api.context.submitted.wait()
    await asyncio.sleep(0.02)
    api.context.announce(table(is_draining=True))
    api.context.request_drain(5.0)
    await asyncio.sleep(0.02)
    refused, text = await api.ask(is_stream)
    assert refused == 503
    assert '"draining"' in text
    api.context.delta(0, "all of it", 0, True)
    status, text = await answer
    assert status == 200
    assert "all of it" in text
    async with asyncio.timeout(1):
        await api.task


@pytest.mark.parametrize("is_stream", [True, False])
async def test_drain_ends_what_is_left_at_the_limit(api: Api, is_stream: bool) -> None:
    api.context.announce(table())
    answer = api.ask(is_stream)
    await api.context.submitted.wait()
    await asyncio.sleep(0.02)
    api.context.request_drain(0.1)
    async with asyncio.timeout(1.5):
        status, text = await answer
    assert status == (200 if is_stream else 503)
    assert '"draining"' in text
    if is_stream:
        assert text.endswith("data: [DONE]\n\n")
    assert api.context.aborted.is_set()


async def test_a_client_that_leaves_sends_an_abort_frame(api: Api) -> None:
    api.context.announce(table())
    answer = api.ask(is_stream=True)
    await api.context.submitted.wait()
    await asyncio.sleep(0.02)
    answer.cancel()
    async with asyncio.timeout(2):
        await api.context.aborted.wait()
