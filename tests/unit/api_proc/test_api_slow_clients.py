"""Clients that send or read slowly, or are too many: each is limited, and the others are served."""

import asyncio
import json
import socket
from typing import Any

import pytest
from error_shape import CHAT, MESSAGES
from fake_engine import stay_silent

from api_proc import process
from api_proc.admin.metrics import own_metrics
from api_proc.server.backlog import MOST_HELD_BYTES, MergedBacklog, TooFarBehind
from api_proc.server.service import Timeouts
from quartet.client.request import Output
from quartet.wire.frames import TextLogprobs

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Wait until the server has closed the connection; return what it sent."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def closed_or_answered(reader: asyncio.StreamReader) -> bytes:
    """Return the first line of the answer, b"" without one."""
    try:
        return await reader.readline()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("sent", [b"G", HEAD, HEAD + b"X-Long: " + b"x" * 500])
async def test_half_a_head_is_closed_at_its_deadline(make_api: Any, sent: bytes) -> None:
    api = await make_api(Timeouts(head_s=0.2, idle_s=60.0))
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(sent)
    assert await closed(reader) == b""
    writer.close()


async def test_bytes_one_at_a_time_do_not_move_the_deadline(make_api: Any) -> None:
    api = await make_api(Timeouts(head_s=0.3, idle_s=60.0))
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    end = asyncio.ensure_future(closed(reader))
    for byte in HEAD * 100:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
        if end.done():
            break
    assert await end == b""
    writer.close()


async def test_a_connection_without_a_request_is_closed(make_api: Any) -> None:
    api = await make_api(Timeouts(head_s=60.0, idle_s=0.2))
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    assert await closed(reader) == b""
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(HEAD + b"\r\n")
    assert (await closed(reader)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_request_in_progress_has_no_deadline_of_the_connection(make_api: Any) -> None:
    api = await make_api(Timeouts(head_s=0.1, idle_s=0.1))
    api.engine.script = stay_silent
    answer = asyncio.ensure_future(api.post(CHAT, {"messages": MESSAGES}))
    await api.engine.arrived.wait()
    await asyncio.sleep(0.5)
    api.engine.outputs[0].finish_all()
    assert (await answer)[0] == 200


async def test_a_whole_answer_that_is_not_read_is_given_up(make_api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STALL_SPARE", 1.0)
    api = await make_api(Timeouts(stall_s=0.3))
    api.engine.script = stay_silent
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", api.port))
    body = json.dumps({"messages": MESSAGES}).encode()
    await loop.sock_sendall(
        raw, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    await api.engine.arrived.wait()
    output = api.engine.outputs[0]
    await output.subscribed.wait()
    for _ in range(100):
        output.text("x" * 200_000)
    output.finish_all()
    received = 0
    async with asyncio.timeout(10):
        while api.service.stats.http["/v1/chat/completions", 200] == 0:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        while data := await loop.sock_recv(raw, 1 << 20):
            received += len(data)
    raw.close()
    assert received < 100 * 200_000


async def test_a_reader_of_a_byte_at_a_time_is_given_up(make_api: Any) -> None:
    api = await make_api(Timeouts(stall_s=0.5))
    api.engine.script = stay_silent
    raw, loop = socket.socket(), asyncio.get_running_loop()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    raw.setblocking(False)
    await loop.sock_connect(raw, ("127.0.0.1", api.port))
    body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    await loop.sock_sendall(raw, head + body)
    await api.engine.arrived.wait()
    output = api.engine.outputs[0]
    await output.subscribed.wait()
    async with asyncio.timeout(20):
        while not output.aborted.is_set():
            output.text("x" * 10_000)
            await loop.sock_recv(raw, 1)
            await asyncio.sleep(0.01)
    raw.close()
    assert api.service.stats.clients_stalled == 1


async def test_connections_beyond_the_limit_are_closed_and_the_others_served(
    make_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MOST_CONNECTIONS", 3)
    api = await make_api()
    kept = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(3)]
    for _, writer in kept:
        writer.write(HEAD + b"\r\n")
    for reader, _ in kept:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    assert await closed(reader) == b""
    writer.close()
    metrics = own_metrics(api.service)
    assert (metrics.gauges["connections"], metrics.counters["connections_refused"]) == (3, 1)
    for _, writer in kept:
        writer.close()
    async with asyncio.timeout(5):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(HEAD + b"\r\n")
            answer = await closed_or_answered(reader)
            writer.close()
            if answer:
                break


def test_what_is_held_for_one_client_is_bounded() -> None:
    backlog = MergedBacklog()
    text = "x" * (MOST_HELD_BYTES // 4)
    for _ in range(4):
        backlog.add(0, [Output(0, [1], text, None, None)])
    with pytest.raises(TooFarBehind):
        backlog.add(0, [Output(1, [1], "x", None, None)])
    backlog.pop()
    backlog.pop()
    one = TextLogprobs("a", b"a", -1.0, (("a", b"a", -1.0),) * 20, 0)
    with pytest.raises(TooFarBehind):
        for _ in range(1000):
            backlog.add(0, [Output(0, [1], "x", [one], None)])
