"""SIGKILL of the api process: its listening socket stays open, and what it recorded goes on exactly."""

import asyncio
import json
import os
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e

CONNECTING = 200
OWNER, OTHER = {"Authorization": "Bearer owner"}, {"Authorization": "Bearer other"}
SAMPLED = {"temperature": 1.0, "presence_penalty": 0.5, "max_tokens": 300, "min_tokens": 280}
USAGE = {"stream_options": {"include_usage": True}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Count."}], **SAMPLED, **USAGE}
TEXT: dict[str, Any] = {"prompt": "Once upon a time", **SAMPLED, **USAGE}
KINDS: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "chat, n = 2": {**CHAT, "n": 2},
    "chat with log-probabilities": {**CHAT, "logprobs": True, "top_logprobs": 2},
    "text": TEXT,
    "text with echo": {**TEXT, "echo": True, "n": 2},
    "text with log-probabilities": {**TEXT, "logprobs": 2},
    "text of two prompts": {**TEXT, "prompt": ["One", "Two"]},
    "text with stop strings": {**TEXT, "stop": ["e", "a"], "max_tokens": 400},
    "greedy text": {**TEXT, "temperature": 0, "ignore_eos": True},
}


class Reader:
    """One client: the events that it has read, and what they say."""

    def __init__(self, url: str, kind: str, **more: Any) -> None:
        self.body = {**KINDS[kind], "stream": True, "seed": 5, **more}
        self.path = url + ("/v1/chat/completions" if "messages" in self.body else "/v1/completions")
        self.url = url
        self.location = ""
        self.numbers: list[int] = []
        self.last = ""
        self.data: list[str] = []
        self.has_begun = asyncio.Event()

    async def begin(self, http: aiohttp.ClientSession, window_s: float = 60.0) -> None:
        headers = {"X-Quartet-Resume": f"{window_s}", **OWNER}
        async with http.post(self.path, json=self.body, headers=headers) as response:
            assert response.status == 200
            self.location = self.url + response.headers["Content-Location"]
            await self._read(response)

    async def read_on(self, http: aiohttp.ClientSession) -> None:
        async with http.get(self.location, headers={"Last-Event-ID": self.last, **OWNER}) as response:
            assert response.status == 200, await response.text()
            await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        event = ""
        async for raw in response.content:
            line = raw.decode().rstrip("\n")
            if line.startswith("id: "):
                event = line[4:]
            elif line.startswith("data: "):
                # An event counts once all of it has come.
                assert await response.content.readline() == b"\n"
                self.last = event
                self.numbers.append(int(event.rpartition(":")[2]))
                self.data.append(line[6:])
                if len(self.data) % 40 == 0:
                    self.has_begun.set()

    def outcome(self) -> dict[str, Any]:
        """Return what the events add up to, however the text is cut."""
        assert self.numbers == list(range(len(self.numbers)))
        assert self.data[-1] == "[DONE]" and self.data.count("[DONE]") == 1
        told: dict[str, Any] = defaultdict(str)
        heads = set()
        for event in map(json.loads, self.data[:-1]):
            heads.add((event["id"], event["created"], event["model"]))
            if not event["choices"]:
                told["usage"] = [event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]]
            for choice in event["choices"]:
                index = choice["index"]
                told[f"text {index}"] += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                told[f"logprobs {index}"] += tokens_of(choice["logprobs"])
                told[f"finish {index}"] += str((choice["finish_reason"], choice.get("matched_stop")))
        assert len(heads) == 1
        return {name: str(value).replace("(None, None)", "") for name, value in told.items()}


def tokens_of(logprobs: dict[str, Any] | None) -> str:
    if logprobs is None:
        return ""
    if "content" in logprobs:
        return "".join(f"{one['token']!r} {one['logprob']:.6f};" for one in logprobs["content"])
    columns = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["text_offset"], strict=True)
    return "".join(f"{token!r} {logprob:.6f} {offset};" for token, logprob, offset in columns)


KEYS = ("--api-key", "owner", "--api-key", "other")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--simulated-worker", "--simulated-step-ms", "4", "--max-total-tokens", "65536", *KEYS) as started:
        yield started


@pytest.fixture(scope="module")
def real() -> Iterator[Server]:
    with Server("--dtype", "float32", "--max-total-tokens", "8192", *KEYS) as started:
        yield started


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
        yield session


async def kill(server: Server, http: aiohttp.ClientSession, *roles: str) -> None:
    """Kill the processes of these roles, in this order."""
    async with http.get(f"{server.url}/topology", headers=OWNER) as response:
        pids = {row["role"]: row["pid"] for row in (await response.json())["processes"]}
    for role in roles:
        if pids[role]:
            with suppress(ProcessLookupError):
                os.kill(pids[role], signal.SIGKILL)


async def status_of(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> int:
    async with http.get(url, headers=headers) as response:
        await response.read()
        return response.status


async def recorded_streams(server: Server, http: aiohttp.ClientSession) -> float:
    async with http.get(f"{server.url}/metrics", headers=OWNER) as response:
        lines = (await response.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("quartet_recorded_streams{"))


async def connect(url: str, delay_s: float) -> str:
    """Open one connection and ask something; returns how that ended."""
    await asyncio.sleep(delay_s)
    host, port = url.removeprefix("http://").split(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        status = await asyncio.wait_for(reader.readline(), 30)
        writer.close()
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionError, TimeoutError) as error:
        return type(error).__name__
    return status[9:12].decode() or "cut"


async def cut_off(readers: list[Reader], server: Server, http: aiohttp.ClientSession) -> list[str]:
    """Begin every stream, kill the api process under them, and read on; returns how connecting clients fared."""
    tasks = [asyncio.create_task(reader.begin(http)) for reader in readers]
    await asyncio.wait_for(asyncio.gather(*(reader.has_begun.wait() for reader in readers)), 60)
    await kill(server, http, "api")
    clients = [asyncio.create_task(connect(server.url, 0.005 * number)) for number in range(CONNECTING)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, aiohttp.ClientError) for result in results), results
    await asyncio.gather(*(reader.read_on(http) for reader in readers))
    return await asyncio.gather(*clients)


async def check_every_kind(server: Server, http: aiohttp.ClientSession, **more: Any) -> None:
    calm = [Reader(server.url, kind, **more) for kind in KINDS]
    await asyncio.gather(*(reader.begin(http) for reader in calm))
    shaken = [Reader(server.url, kind, **more) for kind in KINDS]
    answers = await cut_off(shaken, server, http)
    for kind, expected, got in zip(KINDS, calm, shaken, strict=True):
        assert got.outcome() == expected.outcome(), kind
    assert "refused" not in answers
    assert answers.count("200") == CONNECTING, answers


async def test_recorded_streams_of_every_kind_go_on_exactly(server: Server, http: aiohttp.ClientSession) -> None:
    await check_every_kind(server, http)


@pytest.mark.slow
async def test_streams_of_the_real_model_go_on_exactly(real: Server, http: aiohttp.ClientSession) -> None:
    await check_every_kind(real, http, max_tokens=120, min_tokens=100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_random_deaths_of_the_api_process_and_others(seed: int, http: aiohttp.ClientSession) -> None:
    chance = random.Random(seed)
    flags = ("--simulated-worker", "--simulated-step-ms", "4", "--max-total-tokens", "65536", "--restart-limit", "1000")
    with Server(*flags, "--api-procs", str(1 + seed % 2), *KEYS) as server:
        calm = [Reader(server.url, kind) for kind in KINDS]
        await asyncio.gather(*(reader.begin(http) for reader in calm))
        for _ in range(5):
            shaken = [Reader(server.url, kind) for kind in KINDS]
            tasks = [asyncio.create_task(reader.begin(http)) for reader in shaken]
            while not all(reader.location for reader in shaken):
                await asyncio.sleep(0.01)
            for _ in range(chance.choice((1, 1, 2))):
                await asyncio.sleep(chance.uniform(0.0, 0.9))
                others = [role for role in ("tokenizer", "scheduler", "worker", "detok") if chance.random() < 0.3]
                await kill(server, http, *others, "api")
                await asyncio.gather(*tasks, return_exceptions=True)
                unfinished = [reader for reader in shaken if reader.data[-1:] != ["[DONE]"]]
                tasks = [asyncio.create_task(reader.read_on(http)) for reader in unfinished]
            await asyncio.gather(*tasks)
            assert [reader.outcome() for reader in shaken] == [reader.outcome() for reader in calm]


async def test_a_stream_survives_one_death_after_another(server: Server, http: aiohttp.ClientSession) -> None:
    calm, shaken = (Reader(server.url, "text with echo", max_tokens=900, ignore_eos=True) for _ in range(2))
    await calm.begin(http)
    task = asyncio.create_task(shaken.begin(http))
    for _ in range(2):
        await asyncio.wait_for(shaken.has_begun.wait(), 60)
        await kill(server, http, "api")
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], aiohttp.ClientError)
        shaken.has_begun.clear()
        task = asyncio.create_task(shaken.read_on(http))
    await task
    assert shaken.outcome() == calm.outcome()


async def test_another_key_finds_nothing_and_a_late_one_is_told(server: Server, http: aiohttp.ClientSession) -> None:
    others = await recorded_streams(server, http)
    reader = Reader(server.url, "chat")
    task = asyncio.create_task(reader.begin(http, window_s=1.0))
    await asyncio.wait_for(reader.has_begun.wait(), 60)
    await kill(server, http, "api")
    await asyncio.gather(task, return_exceptions=True)
    assert await status_of(http, reader.location, OTHER) == 404
    assert await status_of(http, reader.location, {}) == 401
    async with asyncio.timeout(30):
        while await recorded_streams(server, http) > others:
            await asyncio.sleep(0.1)
    assert await status_of(http, reader.location, OWNER) == 410
    assert await status_of(http, reader.location, OTHER) == 404
