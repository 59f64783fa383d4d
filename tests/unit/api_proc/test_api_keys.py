"""API keys: which routes answer without one, and how a missing key is refused."""

import ast
import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, assert_error

from api_proc.app import build_app
from api_proc.native.elsewhere import ELSEWHERE
from api_proc.server import auth
from api_proc.server.auth import ADMIN_ROUTES, PUBLIC_ROUTES

ADMIN = [
    ("GET", "/trace"),
    ("HEAD", "/trace"),
    ("GET", "/config"),
    ("POST", "/flush_cache"),
    ("GET", "/flush_cache"),
]
KILL = ("POST", "/ui/kill")
"""An admin route with --demo."""
ROUTES = [
    ("POST", CHAT),
    ("POST", COMPLETIONS),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/toy"),
    ("GET", "/metrics"),
    ("GET", "/topology"),
    ("GET", "/requests/00ff/timeline"),
    ("GET", "/v1/streams/00ff"),
    *[("POST", f"{prefix}/{name}") for prefix in ("", "/v1") for name in ("tokenize", "detokenize")],
    *[("GET", f"/{prefix}{name}_info") for prefix in ("", "get_") for name in ("server", "model")],
    ("GET", "/v1/loads"),
    ("GET", "/get_load"),
    ("GET", "/kv_event_sources"),
    ("GET", "/openapi.json"),
    ("GET", "/health_generate"),
    ("POST", "/abort_request"),
    ("POST", "/generate"),
    ("PUT", "/generate"),
    ("GET", "/ui/stream"),
    *[("POST", path) for paths in ELSEWHERE.values() for path in paths],
    *ADMIN,
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


async def test_a_key_may_come_in_either_header(make_api: Any) -> None:
    """An Authorization header with a bearer token goes before x-api-key; one of another kind says nothing."""
    api = await make_api(api_key=("key-one", "key-two"), admin_api_key=("root",))
    for headers, expected in [
        ({"x-api-key": "key-one"}, 200),
        ({"x-api-key": " key-two "}, 200),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "Bearer key-one"}, 401),
        ({"x-api-key": "key-one", "Authorization": "Basic eDp5"}, 200),
        ({"x-api-key": "key-one", "Authorization": "Bearer wrong"}, 401),
        ({"x-api-key": "wrong", "Authorization": "Bearer key-one"}, 200),
    ]:
        assert (await api.get("/v1/models", headers=headers))[0] == expected, headers
    assert (await api.get("/config", headers={"x-api-key": "root"}))[0] == 200
    assert (await api.get("/config", headers={"x-api-key": "key-one"}))[0] == 403


async def test_a_key_is_the_same_tenant_in_either_header(make_api: Any) -> None:
    api = await make_api(api_key=("key-one", "key-two"))
    for headers in ({"x-api-key": "key-one"}, {"Authorization": "Bearer key-one"}, {"x-api-key": "key-two"}):
        assert (await api.post(COMPLETIONS, {"prompt": "x"}, headers=headers))[0] == 200
    one, same, other = (output.request.tenant for output in api.engine.outputs)
    assert one == same != other and one


async def test_401_has_the_nested_shape(make_api: Any) -> None:
    api = await make_api(api_key=("k",))
    status, body, headers = await api.get("/v1/models")
    assert status == 401
    assert_error(body, "invalid_api_key")
    assert headers["WWW-Authenticate"] == "Bearer"


async def _status(api: Any, method: str, path: str, key: str) -> int:
    return await _raw_status(api.port, method, path, f"Bearer {key}")


async def test_admin_routes_open_to_an_admin_key_alone(make_api: Any) -> None:
    api = await make_api(api_key=("key-one",), admin_api_key=("root-one", "root-two"))
    for method, path in ADMIN:
        assert await _status(api, method, path, "key-one") == 403
        assert await _status(api, method, path, "wrong") == 401
        assert await _raw_status(api.port, method, path, None) == 401
        assert await _status(api, method, path, "root-two") == 200
    for method, path in [("GET", "//trace"), ("GET", "/%74race/"), ("GET", "/health/../trace"), ("POST", "/trace")]:
        assert await _status(api, method, path, "wrong") == 401
        assert await _status(api, method, path, "key-one") in (403, 404, 405)
    for method, path in ROUTES + PUBLIC:
        assert await _status(api, method, path, "root-one") not in (401, 403), (method, path)


async def test_an_encoded_path_is_the_route_that_it_matches(make_api: Any) -> None:
    api = await make_api(api_key=("key-one",), admin_api_key=("root-one",))
    for path in ("/%74race", "/trac%65", "/trace?x=/health"):
        assert await _status(api, "GET", path, "key-one") == 403
        assert await _status(api, "GET", path, "root-one") == 200


async def test_with_an_admin_key_only_the_other_routes_are_open(make_api: Any) -> None:
    api = await make_api(admin_api_key=("root-one",))
    assert await _raw_status(api.port, "GET", "/v1/models", None) == 200
    for method, path in ADMIN:
        assert await _raw_status(api.port, method, path, None) == 401
        assert await _status(api, method, path, "root-one") == 200


async def test_403_has_the_nested_shape(make_api: Any) -> None:
    api = await make_api(api_key=("k",), admin_api_key=("root",))
    status, body, _ = await api.get("/config", headers={"Authorization": "Bearer k"})
    assert status == 403
    assert_error(body, "admin_key_required")


async def test_an_admin_key_alone_ends_processes(make_api: Any) -> None:
    api = await make_api(api_key=("key-one",), admin_api_key=("root-one",), demo=True)
    assert await _raw_status(api.port, *KILL, None) == 401
    assert await _status(api, *KILL, "key-one") == 403
    assert await _status(api, *KILL, "root-one") == 400


async def test_every_route_of_the_application_is_in_the_matrix(make_api: Any) -> None:
    """A route that is added needs its row here."""
    api = await make_api(demo=True)
    routes = {route.resource.canonical for route in build_app(api.service).router.routes()}
    named = {path for _, path in [*ROUTES, *PUBLIC, KILL]}
    named |= {"/v1/models/{id}", "/requests/{rid}/timeline", "/v1/streams/{id}"}
    assert routes <= named, routes - named
    assert routes >= PUBLIC_ROUTES and routes >= ADMIN_ROUTES


def test_every_key_is_compared() -> None:
    """No early out: the time tells nothing about which key is nearly right."""
    compared = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auth.hmac, "compare_digest", lambda one, other: compared.append(other) or one == other)
        assert auth.KeyRing(["a", "b", "c"]).admits("a")
    assert len(compared) == 3


def test_no_secret_is_compared_by_an_operator() -> None:
    """Only digests are, and by compare_digest."""
    tree = ast.parse(Path(auth.__file__).read_text())
    compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    secret = re.compile(r"digest|key\b|given")
    assert not [text for text in compared if secret.search(text)]
