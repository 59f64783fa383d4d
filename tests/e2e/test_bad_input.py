"""Bad input against a real launch: a clear error in OpenAI's shape, nothing hangs, and the engine serves on."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--simulated-worker", "--max-total-tokens", "4096", "--context-length", "2048") as running:
        yield running


def post(server: Server, path: str, body: Any) -> tuple[int, Any]:
    """Send a body (bytes as they are, else as JSON); returns status and decoded answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    try:
        connection.request("POST", path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


CASES: list[tuple[str, str, Any, int, str | None]] = [
    ("malformed JSON", CHAT, b'{"model": "smollm2", "messages": [', 400, None),
    ("not an object", CHAT, b"[1, 2]", 400, None),
    ("invalid UTF-8", CHAT, b'{"model": "smollm2", "messages": [{"role": "user", "content": "\xff"}]}', 400, None),
    ("wrong type", CHAT, {"model": "smollm2", "messages": "hello"}, 400, "messages"),
    ("float for int", CHAT, {"model": "smollm2", "messages": HELLO, "max_tokens": 5.5}, 400, "max_tokens"),
    ("no messages", CHAT, {"model": "smollm2"}, 400, "messages"),
    ("empty messages", CHAT, {"model": "smollm2", "messages": []}, 400, "messages"),
    ("unknown role", CHAT, {"model": "smollm2", "messages": [{"role": "wizard", "content": "x"}]}, 400, None),
    ("unknown model", CHAT, {"model": "gpt-17", "messages": HELLO}, 404, "model"),
    ("zero on chat", CHAT, {"model": "smollm2", "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
    ("negative", TEXT, {"model": "smollm2", "prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
    ("absurd", TEXT, {"model": "smollm2", "prompt": "x", "max_tokens": 1 << 40}, 400, "max_tokens"),
    ("temperature", TEXT, {"model": "smollm2", "prompt": "x", "temperature": -1}, 400, "temperature"),
    ("top_p", TEXT, {"model": "smollm2", "prompt": "x", "top_p": 1.5}, 400, "top_p"),
    ("n", TEXT, {"model": "smollm2", "prompt": "x", "n": 1000}, 400, "n"),
    ("prompt too long", TEXT, {"model": "smollm2", "prompt": "word " * 5000}, 400, "prompt"),
    ("messages too long", CHAT, {"model": "smollm2", "messages": [{"role": "user", "content": "word " * 5000}]},
     400, "messages"),
    ("ids out of the vocabulary", TEXT, {"model": "smollm2", "prompt": [1, 99999999]}, 400, "prompt"),
    ("empty prompt", TEXT, {"model": "smollm2", "prompt": ""}, 400, "prompt"),
    ("deep JSON", CHAT, b"[" * 100_000, 400, None),
    ("deep JSON that is ignored", TEXT, b'{"prompt": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, None),
    ("lone surrogate", TEXT, b'{"prompt": "a\\ud800b"}', 400, None),
    ("lone surrogate in UTF-8", TEXT, b'{"prompt": "a\xed\xa0\x80b"}', 400, None),
    ("byte order mark", TEXT, b'\xef\xbb\xbf{"prompt": "x"}', 400, None),
    ("UTF-16", TEXT, '{"prompt": "x"}'.encode("utf-16"), 400, None),
    ("NaN", TEXT, b'{"prompt": "x", "temperature": NaN}', 400, None),
    ("infinity", TEXT, b'{"prompt": "x", "temperature": 1e999}', 400, "temperature"),
    ("long number", TEXT, b'{"prompt": "x", "seed": 1' + b"0" * 5000 + b"}", 400, None),
    ("bare NUL", TEXT, b'{"prompt": "a\0b"}', 400, None),
    ("two values", TEXT, b'{"prompt": "x"}{"prompt": "y"}', 400, None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "param"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_bad_requests(server: Server, path: str, body: Any, status: int, param: str | None) -> None:
    got, answer = post(server, path, body)
    assert got == status, answer
    error = answer["error"]
    assert error["message"] and error["type"] and "Traceback" not in error["message"]
    if param is not None:
        assert error["param"] == param, error


POST_TEXT = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
RAW_CASES: list[tuple[str, bytes, int]] = [
    ("not HTTP", b"hello\r\n\r\n", 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    ("bad header", b"GET /health HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", 400),
    ("bad chunk", POST_TEXT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ("long header", b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 431),
    ("plain as gzip", POST_TEXT + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 400),
    ("unknown encoding", POST_TEXT + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", 415),
]


@pytest.mark.parametrize(("request_bytes", "status"), [c[1:] for c in RAW_CASES], ids=[c[0] for c in RAW_CASES])
def test_requests_that_are_wrong_below_json(server: Server, request_bytes: bytes, status: int) -> None:
    target = urlsplit(server.url)
    with socket.create_connection((target.hostname, target.port), timeout=20) as connection:
        connection.sendall(request_bytes)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == status
        error = json.loads(response.read())["error"]
    assert error["message"] and error["type"] == "invalid_request_error" and error["code"]


def test_a_prompt_too_long_says_so_in_openais_words(server: Server) -> None:
    _, answer = post(server, TEXT, {"model": "smollm2", "prompt": "word " * 5000})
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 2048 tokens" in answer["error"]["message"]


def test_a_large_max_tokens_is_clamped_and_zero_is_valid_on_completions(server: Server) -> None:
    status, answer = post(server, TEXT, {"model": "smollm2", "prompt": "x", "max_tokens": 100_000, "ignore_eos": True})
    assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] < 2048
    status, answer = post(server, TEXT, {"model": "smollm2", "prompt": "x", "max_tokens": 0, "echo": True})
    assert status == 200 and answer["choices"][0]["text"] == "x"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize(
    ("body", "text"),
    [
        # The last of several equal keys counts, as in Python's json.
        (b'{"prompt": "a", "prompt": "b", "max_tokens": 0, "echo": true}', "b"),
        (b'{"prompt": "a\\u0000b", "max_tokens": 0, "echo": true}', "a\0b"),
        (b'{"prompt": "\\ud83d\\ude00", "max_tokens": 0, "echo": true}', "\N{GRINNING FACE}"),
        (b' \n{"prompt": "a", "max_tokens": 0, "echo": true}\n ', "a"),
    ],
)
def test_json_with_a_defined_result(server: Server, body: bytes, text: str) -> None:
    status, answer = post(server, TEXT, body)
    assert status == 200 and answer["choices"][0]["text"] == text, answer


def test_the_engine_serves_on(server: Server) -> None:
    status, _ = post(server, TEXT, {"model": "smollm2", "prompt": "x", "max_tokens": 4})
    assert status == 200
    assert all(row["restarts"] == 0 for row in server.topology().values())
