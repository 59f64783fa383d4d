"""Request bodies that are not JSON, too large or never complete."""

import asyncio
import json
from typing import Any

import pytest
from error_shape import CHAT, MESSAGES, assert_error

from api_proc.server.service import Timeouts


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages": [], "temperature": NaN}',
        b'{"messages": [], "temperature": Infinity}',
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'\xef\xbb\xbf{"messages": []}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_a_body_that_is_not_json(api: Any, raw: bytes) -> None:
    status, body, _ = await api.post(CHAT, data=raw)
    assert status == 400
    assert_error(body, "invalid_json")


@pytest.mark.parametrize("raw", [b"[]", b"5", b"null", b'"x"', b'{"messages": [], "temperature": 1e400}'])
async def test_json_of_the_wrong_kind(api: Any, raw: bytes) -> None:
    status, body, _ = await api.post(CHAT, data=raw)
    assert status == 400
    assert_error(body, "invalid_value")


async def test_nul_and_duplicate_and_unknown_keys_are_accepted(api: Any) -> None:
    raw = b'{"messages":[{"role":"user","content":"a\\u0000b"}],"n":9,"n":1,"user":"u","meta":{"a":[1]},"stop":null}'
    status, body, _ = await api.post(CHAT, data=raw)
    assert status == 200
    assert len(body["choices"]) == 1
    sent = json.loads(api.engine.outputs[0].request.prompt.messages)
    assert sent[0]["content"] == "a\x00b"


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
@pytest.mark.parametrize(("depth", "expected"), [(64, 200), (65, 400), (900, 400), (980, 400), (100_000, 400)])
async def test_template_variables_are_nested_as_deeply_as_every_process_can_read(
    api: Any, opening: str, closing: str, depth: int, expected: int
) -> None:
    nested = opening * (depth - 1) + "1" + closing * (depth - 1)
    raw = f'{{"messages": {json.dumps(MESSAGES)}, "chat_template_kwargs": {{"deep": {nested}}}}}'
    status, body, _ = await api.post(CHAT, data=raw.encode())
    assert status == expected, body
    if depth in (65, 900):
        assert_error(body, "invalid_value", "chat_template_kwargs")


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_huge_body_is_413(make_api: Any, is_chunked: bool) -> None:
    api = await make_api(max_body_bytes=2048)

    async def pieces() -> Any:
        for _ in range(8):
            yield b"x" * 1024

    status, body, _ = await api.post(CHAT, data=pieces() if is_chunked else b"x" * 8192)
    assert status == 413
    assert_error(body, "request_too_large")
    status, _, _ = await api.post(CHAT, {"messages": MESSAGES})
    assert status == 200


async def test_a_declared_huge_body_is_refused_before_it_is_read(make_api: Any) -> None:
    api = await make_api(max_body_bytes=2048)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
    async with asyncio.timeout(2):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_body_that_never_comes_is_408(make_api: Any) -> None:
    api = await make_api(Timeouts(body_s=0.1))
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    async with asyncio.timeout(2):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    writer.close()
