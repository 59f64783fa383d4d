"""What a launch shows to others: sockets, files, arguments; what one key's requests show to another; what is left of
clients that have gone."""

import asyncio
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e
SECRETS = "secret-of-anna", "secret-of-bert"
ADMIN = "secret-of-admin"
DOUBLE = "{% set a = namespace(x=(1,), y=(1,)) %}{% for i in range(60) %}{% set a.x = (a.x, a.x) %}"
DOUBLE += "{% set a.y = (a.y, a.y) %}{% endfor %}"
PROMPT = "A rather unusual sentence about marmalade. " * 20


BOMBS = {
    "sum": "{{ ([[0] * 1000] * 100000) | sum(start=[]) | length }}",
    "equal": DOUBLE + "{{ a.x == a.y }}",
    "join": "{{ (['x' * 1000000] * 100000) | join | length }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 'a' * 10**10 }}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    cases = "".join(
        f"{{% if messages[0].content == '{name}' %}}{source}{{% endif %}}" for name, source in BOMBS.items()
    )
    template.write_text(cases + "{{ messages[0].content }}")
    flags = (
        "--simulated-worker",
        "--simulated-step-ms",
        "5",
        "--context-length",
        "2048",
        "--max-running-requests",
        "2",
        "--chat-template",
        str(template),
    )
    keys = {"QUARTET_API_KEY": ",".join(SECRETS), "QUARTET_ADMIN_API_KEY": ADMIN}
    with Server(*flags, env=keys) as running:
        yield running


def listening(pids: list[int]) -> list[tuple[str, int]]:
    """Return address (hexadecimal) and port of every TCP socket on which these processes listen."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if found := re.match(r"socket:\[(\d+)\]", os.readlink(entry)):
                    inodes.add(found[1])
            except OSError:
                continue
    sockets = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                sockets.append((address, int(port, 16)))
    return sockets


def test_only_the_http_port_listens_and_on_loopback_alone(server: Server) -> None:
    assert listening(server.processes()) == [("0100007F", urlsplit(server.url).port)]


def test_the_run_directory_is_private(server: Server) -> None:
    paths = list(server.base.rglob("*"))
    assert [path for path in paths if path.is_socket()]
    for path in paths:
        assert path.is_dir() or path.parent != server.base
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_no_child_has_a_key_among_its_arguments(server: Server) -> None:
    for pid in server.processes():
        arguments = Path(f"/proc/{pid}/cmdline").read_text()
        assert not [secret for secret in (*SECRETS, ADMIN) if secret in arguments]


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def completion(server: Server, key: str, **fields: Any) -> Any:
    body = {"prompt": PROMPT, "max_tokens": 2, **fields}
    async with (
        aiohttp.ClientSession(headers=headers(key)) as session,
        session.post(f"{server.url}/v1/completions", json=body) as response,
    ):
        assert response.status == 200
        return await response.json()


async def test_keys_and_salts_share_no_cached_prefix(server: Server) -> None:
    async def cached(key: str, **fields: Any) -> int:
        usage = (await completion(server, key, **fields))["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    anna, bert = SECRETS
    assert await cached(anna) == 0
    assert await cached(anna) > 0
    assert await cached(bert) == 0, "another key's prefix shows in the timing"
    assert await cached(anna, cache_salt="s") == 0
    assert await cached(anna, cache_salt="s") > 0
    assert await cached(bert) > 0


async def metric(server: Server, name: str) -> float:
    async with (
        aiohttp.ClientSession(headers=headers(SECRETS[0])) as session,
        session.get(f"{server.url}/metrics") as response,
    ):
        lines = (await response.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"quartet_{name}{{"))


HELD = (
    "api_admitted_choices",
    "api_live_requests",
    "num_running_reqs",
    "num_queue_reqs",
    "num_grammar_queue_reqs",
    "kv_used_tokens",
)


async def until_nothing_is_held(server: Server) -> None:
    async with asyncio.timeout(20):
        while any([await metric(server, name) for name in HELD]):
            await asyncio.sleep(0.1)


def connect(server: Server, is_stream: bool, tokens: int, sent: float = 1.0) -> socket.socket:
    """Send a request, or a part of it."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "stream": is_stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRETS[0]}\r\n"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    parts = urlsplit(server.url)
    raw = socket.create_connection((str(parts.hostname), int(parts.port or 0)))
    raw.sendall(whole[: int(sent * len(whole))])
    return raw


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("phase", ["body", "at_once", "queued", "decode"])
async def test_a_client_that_goes_leaves_nothing_behind(server: Server, phase: str, is_stream: bool) -> None:
    sent = 0.5 if phase == "body" else 1.0
    clients = [connect(server, is_stream, 900, sent) for _ in range(4 if phase == "queued" else 1)]
    if phase in ("queued", "decode"):
        async with asyncio.timeout(20):
            while await metric(server, "num_queue_reqs" if phase == "queued" else "num_running_reqs") < 1:
                await asyncio.sleep(0.05)
    for raw in clients:
        raw.close()
    await until_nothing_is_held(server)


async def test_no_prompt_is_in_the_output(server: Server) -> None:
    await completion(server, SECRETS[0])
    assert not [line for line in server.output if "marmalade" in line or "secret-of" in line]


async def chat(server: Server, content: str) -> int:
    """Return the status of a chat."""
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
    async with (
        aiohttp.ClientSession(headers=headers(SECRETS[0])) as session,
        session.post(f"{server.url}/v1/chat/completions", json=body) as response,
    ):
        return response.status


@pytest.mark.parametrize(
    "name", ["sum", *(pytest.param(name, marks=pytest.mark.slow) for name in BOMBS if name != "sum")]
)
async def test_a_template_bomb_is_one_requests_error(server: Server, name: str) -> None:
    """Beside it others are served, and no process is restarted."""
    async with asyncio.timeout(30):
        bomb, *others = await asyncio.gather(chat(server, name), *(chat(server, f"hello {i}") for i in range(4)))
    assert (bomb, others) == (400, [200] * 4)
    async with (
        aiohttp.ClientSession(headers=headers(ADMIN)) as session,
        session.get(f"{server.url}/topology") as response,
    ):
        assert not [row for row in (await response.json())["processes"] if row["restarts"]]
