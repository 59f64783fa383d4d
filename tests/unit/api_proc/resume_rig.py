"""Recorded streams over HTTP: what a client reads event by event, and the kinds of request that are resumed."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import aiohttp
from conftest import Api
from fake_engine import FakeOutputStream, finish, logprob_of, stay_silent

from quartet.client.request import Output
from quartet.wire.frames import TextLogprobs

RESUME = {"X-Quartet-Resume": "60"}
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROMPTS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    TEXT: {"prompt": "the prompt"},
    "/v1/messages": {"messages": MESSAGES},
    "/v1/responses": {"input": "hi"},
}
ENDS = ("[DONE]", "message_stop", "response.completed")
"""What the last event of a stream holds, one for each API."""
USAGE = {"stream_options": {"include_usage": True}}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "chat_n2_usage": (CHAT, {"n": 2, **USAGE}),
    "chat_logprobs": (CHAT, {"logprobs": True, "top_logprobs": 2}),
    "chat_continuous_usage": (CHAT, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    "text": (TEXT, USAGE),
    "text_echo_n2": (TEXT, {"n": 2, "echo": True}),
    "text_logprobs": (TEXT, {"logprobs": 1, **USAGE}),
    "chat_ids": (CHAT, {"return_token_ids": True, "n": 2}),
    "text_ids": (TEXT, {"return_token_ids": True, "logprobs": 1}),
    "text_scored_echo": (TEXT, {"echo": True, "logprobs": 1, "prompt_logprobs": 0, "n": 2}),
    "message": ("/v1/messages", {}),
    "response": ("/v1/responses", {}),
    "response_logprobs": ("/v1/responses", {"top_logprobs": 1}),
    "text_two_prompts": (TEXT, {"prompt": ["one", "two"], **USAGE}),
}


def body_of(path: str, **more: Any) -> dict[str, Any]:
    """Return the body of a streamed request."""
    return {**PROMPTS[path], "stream": True, "max_tokens": 9, **more}


def increments(n: int, has_logprobs: bool, has_prompt: bool = False) -> list[Output]:
    """Return the output of one prompt, whose choices take turns, as they do in the steps of an engine."""
    prompt = [TextLogprobs("the", b"the", 0.0, (), 0, -1), TextLogprobs(" prompt", b" prompt", -0.5, (), 0, 2)]
    ahead = [Output(choice, [], "", prompt, None) for choice in range(n) if has_prompt]
    by_choice = [[*ahead[choice:][:1], *_choice(choice, has_logprobs)] for choice in range(n)]
    return [output for turn in itertools.zip_longest(*by_choice) for output in turn if output is not None]


def _choice(choice: int, has_logprobs: bool) -> Iterator[Output]:
    """Yield text that is held back at first, an increment of two tokens, and an end: with text, or, later, without."""
    shown = 0
    texts = ["a", "", "bc", " 🎉", "\n\n"]
    for number, text in enumerate(texts):
        # An entry of held back text begins in text that comes later.
        entries = [logprob_of(text, 1, shown)] if has_logprobs else None
        shown += len(text)
        is_end = number == len(texts) - 1 and not choice
        yield Output(choice, [number] * (2 if number == 2 else 1), text, entries, finish(count=6) if is_end else None)
    if choice:
        yield Output(choice, [], "", None, finish("stop", "END", count=6))


def script_of(outputs: list[FakeOutputStream]) -> list[tuple[int, Output]]:
    """Return all output of a request, with the index of the prompt that it is of."""
    request = outputs[0].request
    each = increments(request.n, request.params.logprobs >= 0, request.params.prompt_logprobs >= 0)
    return [(index, output) for output in each for index in range(len(outputs))]


async def events_of(response: aiohttp.ClientResponse, limit: int | None = None) -> list[str]:
    """Read events, each with its end; at most `limit`, or as many as come."""
    events: list[str] = []
    lines: list[str] = []
    while limit is None or len(events) < limit:
        try:
            line = await response.content.readline()
        except aiohttp.ClientError:
            break
        if not line:
            break
        lines.append(line.decode())
        if line == b"\n":
            events.append("".join(lines))
            lines = []
    return events


def number_of(event: str) -> int:
    """Return the number in an event's id."""
    head, _, _ = event.partition("\n")
    assert head.startswith("id: ")
    return int(head.rpartition(":")[2])


async def settle() -> None:
    """Let everything run that needs no time."""
    for _ in range(10):
        await asyncio.sleep(0)


async def begin(api: Api, path: str, **more: Any) -> tuple[aiohttp.ClientResponse, list[FakeOutputStream]]:
    """Begin a recorded stream whose output the test pushes; returns the response and the engine's requests."""
    api.engine.script = stay_silent
    before = len(api.engine.outputs)
    response = await api.http.post(api.url + path, json=body_of(path, **more), headers=RESUME)
    assert response.status == 200, await response.text()
    return response, api.engine.outputs[before:]


async def read_on(api: Api, response: aiohttp.ClientResponse, seen: str = "", **headers: str) -> Any:
    if seen:
        headers["Last-Event-ID"] = seen.partition("\n")[0].removeprefix("id: ")
    return await api.http.get(api.url + response.headers["Content-Location"], headers=headers)


async def status_of(api: Api, response: aiohttp.ClientResponse, seen: str = "", **headers: str) -> int:
    answer = await read_on(api, response, seen, **headers)
    answer.close()
    return int(answer.status)


async def left(api: Api) -> None:
    """Wait until no response has a reader."""
    kept = api.service.recordings._kept
    await settle_until(lambda: all(recording.reader is None for recording in kept.values()))


async def settle_until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
