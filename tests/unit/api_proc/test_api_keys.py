"""API keys: which routes answer without one, and how a missing key is refused."""

import asyncio
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, assert_error

ROUTES = [
    ("POST", CHAT),
    ("POST", COMPLETIONS),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/toy"),
    ("GET", "/metrics"),
    ("GET", "/topology"),
    ("GET", "/nothing"),
    ("GET", "//v1/models"),
    ("GET", "/health/../v1/models"),
    ("GET", "/health/%2e%2e/v1/models"),
    ("POST", "/health"),
    ("HEAD", "/v1/models"),
    ("OPTIONS", CHAT),
]
PUBLIC = [("GET", "/health"), ("GET", "/ready"), ("GET", "/"), ("HEAD", "/health")]


async def _raw_status(port: int, method: str, path: str, key: str | None, host: str = "x") -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Length: 0"]
    if key is not None:
        lines.append(f"Authorization: {key}")
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


@pytest.mark.parametrize("key", [None, "", "Bearer", "Bearer wrong", "Basic key-one", "key-one", "Bearer key-on"])
async def test_without_a_key_only_public_routes_answer(make_api: Any, key: str | None) -> None:
    api = await make_api(api_key=("key-one", "key-two"))
    for method, path in ROUTES:
        assert await _raw_status(api.port, method, path, key) == 401, (method, path)
        assert await _raw_status(api.port, method, path, key, host="x/health") == 401
    for method, path in PUBLIC:
        assert await _raw_status(api.port, method, path, key) == 200, (method, path)


@pytest.mark.parametrize("key", ["Bearer key-one", "bearer key-two"])
async def test_with_any_of_the_keys_every_route_answers(make_api: Any, key: str) -> None:
    api = await make_api(api_key=("key-one", "key-two"))
    for method, path in ROUTES + PUBLIC:
        assert await _raw_status(api.port, method, path, key) != 401, (method, path)


async def test_401_has_the_nested_shape(make_api: Any) -> None:
    api = await make_api(api_key=("k",))
    status, body, headers = await api.get("/v1/models")
    assert status == 401
    assert_error(body, "invalid_api_key")
    assert headers["WWW-Authenticate"] == "Bearer"
