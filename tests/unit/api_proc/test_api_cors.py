"""Pages of other origins (--cors-origins), and the methods OPTIONS and HEAD."""

from typing import Any

import pytest
from error_shape import CHAT, MESSAGES

PAGE = "https://chat.example"
ASKED = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
SENT = "Authorization, content-type, X-API-Key, anthropic-version, anthropic-beta, x-stainless-lang"


async def options(api: Any, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    async with api.http.options(api.url + path, headers=headers) as response:
        return response.status, response.headers


@pytest.mark.parametrize("origins", [(PAGE,), ("https://other.example", PAGE)])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/models", "/health"])
async def test_a_preflight_of_an_admitted_origin_needs_no_key(make_api: Any, origins: Any, path: str) -> None:
    api = await make_api(api_key=("k",), cors_origins=origins)
    status, headers = await options(api, path, {**ASKED, "Access-Control-Request-Headers": SENT})
    assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (204, PAGE, "Origin")
    assert "POST" in headers["Access-Control-Allow-Methods"]
    allowed = set(headers["Access-Control-Allow-Headers"].split(", "))
    assert allowed == {name.strip().lower() for name in SENT.split(",")}
    assert "Access-Control-Allow-Credentials" not in headers


async def test_any_origin(make_api: Any) -> None:
    api = await make_api(cors_origins=("*",))
    _, headers = await options(api, CHAT, ASKED)
    assert headers["Access-Control-Allow-Origin"] == "*" and "Access-Control-Allow-Credentials" not in headers
    _, _, headers = await api.get("/v1/models", headers={"Origin": "null"})
    assert headers["Access-Control-Allow-Origin"] == "*"


async def test_other_headers_are_not_allowed(make_api: Any) -> None:
    api = await make_api(cors_origins=(PAGE,))
    wanted = "cookie, host, x y, x-ok, authorization, proxy-authorization, x-<script>, "
    _, headers = await options(api, CHAT, {**ASKED, "Access-Control-Request-Headers": wanted})
    assert headers["Access-Control-Allow-Headers"] == "authorization, x-ok"


@pytest.mark.parametrize("origin", ["https://evil.example", "https://chat.example.evil", "null", "http://chat.example"])
async def test_another_origin_is_not_admitted(make_api: Any, origin: str) -> None:
    api = await make_api(api_key=("k",), cors_origins=(PAGE,))
    status, headers = await options(api, CHAT, {**ASKED, "Origin": origin})
    assert status == 401 and "Access-Control-Allow-Origin" not in headers
    key = {"Authorization": "Bearer k", "Origin": origin}
    _, _, headers = await api.post(CHAT, {"messages": MESSAGES}, headers=key)
    assert "Access-Control-Allow-Origin" not in headers and headers["Vary"] == "Origin"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_answers_and_errors_can_be_read_by_the_page(make_api: Any, is_stream: bool) -> None:
    api = await make_api(api_key=("k",), cors_origins=(PAGE,))
    for key, expected in (("k", 200), ("wrong", 401)):
        headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
        status, _, answered = await api.post(CHAT, {"messages": MESSAGES, "stream": is_stream}, headers=headers)
        assert (status, answered["Access-Control-Allow-Origin"]) == (expected, PAGE)
        assert "X-Request-Id" in answered["Access-Control-Expose-Headers"]


async def test_options_names_the_methods_of_a_route(api: Any) -> None:
    for path, methods in (
        (CHAT, "OPTIONS, POST"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        ("/flush_cache", "GET, OPTIONS, POST"),
        ("/generate", "OPTIONS, POST, PUT"),
        ("/v1/streams/00ff", "GET, OPTIONS"),
    ):
        status, headers = await options(api, path, {})
        assert (status, headers["Allow"]) == (204, methods), path
    assert (await options(api, "/nothing", {}))[0] == 404


async def test_head_gives_the_head_of_a_get(api: Any) -> None:
    for path in ("/", "/health", "/ready", "/metrics", "/v1/models", "/v1/models/toy", "/topology", "/v1/loads"):
        async with api.http.head(api.url + path) as response, api.http.get(api.url + path) as whole:
            assert (response.status, await response.read()) == (whole.status, b""), path
            assert response.headers["Content-Type"] == whole.headers["Content-Type"]
