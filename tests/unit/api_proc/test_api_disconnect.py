"""Clients that disconnect or do not read: requests are aborted, memory is bounded, other clients are not affected."""

import asyncio
import json
import socket
from typing import Any

import pytest
from fake_engine import stay_silent

from api_proc.server.service import Timeouts

MESSAGES = [{"role": "user", "content": "hi"}]


async def connect(api: Any, body: dict[str, Any], receive_buffer: int = 0) -> socket.socket:
    """Send a chat request over a raw socket, which the test reads or does not read."""
    raw = socket.socket()
    if receive_buffer:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", api.port))
    payload = json.dumps({"messages": MESSAGES, **body}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(payload)
    await loop.sock_sendall(raw, head + payload)
    return raw


async def read_to_done(raw: socket.socket) -> bytes:
    data = b""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    async with asyncio.timeout(10):
        while b"data: [DONE]" not in data:
            chunk = await asyncio.get_running_loop().sock_recv(raw, 1 << 20)
            assert chunk
            data += chunk
    return data


def text_of(data: bytes) -> str:
    """Return the text of all deltas in a chunked event stream."""
    lines = [line for line in data.decode().split("\n") if line.startswith("data: {")]
    return "".join(one["choices"][0]["delta"].get("content", "") for one in map(json.loads, (x[6:] for x in lines)))


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_is_aborted(api: Any, is_stream: bool) -> None:
    api.engine.script = stay_silent
    raw = await connect(api, {"stream": is_stream})
    async with asyncio.timeout(2):
        await api.engine.arrived.wait()
        output = api.engine.outputs[0]
        await output.subscribed.wait()
        output.text("one")
        await asyncio.sleep(0.01)
        raw.close()
        await output.aborted.wait()
        assert await api.service.open.wait_empty(2)
    assert api.service.stats.clients_closed == 1


async def test_a_client_that_leaves_in_the_queue_cancels_generate(api: Any) -> None:
    api.engine.accept.clear()
    raw = await connect(api, {"stream": True})
    async with asyncio.timeout(2):
        await api.engine.waiting.wait()
        raw.close()
        assert await api.service.open.wait_empty(2)
    assert api.engine.cancelled == 1


async def test_every_prompt_of_a_lost_client_is_aborted(api: Any) -> None:
    subscribed = asyncio.Event()

    async def script(output: Any) -> None:
        await output.subscribed.wait()
        if len(api.engine.outputs) == 3:
            subscribed.set()

    api.engine.script = script
    task = asyncio.ensure_future(api.post("/v1/completions", {"prompt": ["a", "b", "c"], "stream": True}))
    async with asyncio.timeout(2):
        await subscribed.wait()
        task.cancel()
        for output in api.engine.outputs:
            await output.aborted.wait()


async def test_a_slow_reader_gets_everything_in_fewer_events(api: Any) -> None:
    api.engine.script = stay_silent
    raw = await connect(api, {"stream": True}, receive_buffer=1 << 16)
    await api.engine.arrived.wait()
    output = api.engine.outputs[0]
    await output.subscribed.wait()
    await asyncio.sleep(0.05)
    words = [f" word{i:06d}é" for i in range(60_000)]
    for word in words[:30_000]:
        output.text(word)
    writes = api.service.stats.sse_writes
    assert writes < 30_000, "the transport took everything: the test proves nothing"
    for word in words[30_000:]:
        output.text(word)
    assert api.service.stats.sse_writes == writes
    output.finish_all()
    data = await read_to_done(raw)
    raw.close()
    payload = strip_chunks(data.partition(b"\r\n\r\n")[2])
    assert text_of(payload) == "".join(words)
    assert payload.count(b'"finish_reason":"stop"') == 1
    assert payload.count(b"data: ") < 32_000


def strip_chunks(data: bytes) -> bytes:
    """Undo the chunked framing, checking it on the way; the terminating chunk may not have come yet."""
    result = []
    at = 0
    while at < len(data) and not data.startswith(b"0\r\n", at):
        line_end = data.index(b"\r\n", at)
        start, length = line_end + 2, int(data[at:line_end], 16)
        assert data[start + length : start + length + 2] == b"\r\n"
        result.append(data[start : start + length])
        at = start + length + 2
    return b"".join(result)


@pytest.mark.parametrize("is_finished", [False, True])
async def test_a_reader_that_reads_nothing_is_given_up(make_api: Any, is_finished: bool) -> None:
    api = await make_api(Timeouts(stall_s=0.3))
    api.engine.script = stay_silent
    raw = await connect(api, {"stream": True}, receive_buffer=1 << 16)
    await api.engine.arrived.wait()
    output = api.engine.outputs[0]
    await output.subscribed.wait()
    await asyncio.sleep(0.05)
    for _ in range(30_000):
        output.text(" a word that is not read")
    if is_finished:
        output.finish_all()
    status, _, _ = await api.get("/health")
    assert status == 200
    assert await api.service.open.wait_empty(3)
    # The limit of the stream or, on a busy machine, that of its connection.
    assert api.service.stats.clients_stalled + api.service.connections.stalled == 1
    assert is_finished or output.aborted.is_set()
    raw.close()


async def test_an_error_reaches_a_slow_reader_after_the_text(api: Any) -> None:
    from quartet.wire.errors import RequestError

    api.engine.script = stay_silent
    raw = await connect(api, {"stream": True}, receive_buffer=1 << 16)
    await api.engine.arrived.wait()
    output = api.engine.outputs[0]
    await output.subscribed.wait()
    await asyncio.sleep(0.05)
    for _ in range(30_000):
        output.text(" abcdefgh")
    output.fail(RequestError(500, "internal_error", "it broke"))
    data = strip_chunks((await read_to_done(raw)).partition(b"\r\n\r\n")[2])
    raw.close()
    assert data.count(b"abcdefgh") == 30_000
    assert data.index(b'"it broke"') > data.rindex(b"abcdefgh")
    assert data.endswith(b"data: [DONE]\n\n")
