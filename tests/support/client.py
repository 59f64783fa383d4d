"""A small streaming client for tests: what a user's program sees, event by event."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp


@dataclass
class Answer:
    """A finished stream."""

    text: str = ""
    events: int = 0
    finish: str | None = None
    error: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    is_done: bool = False
    pieces: list[str] = field(default_factory=list)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """Yield the data of each server-sent event."""
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith("data: "):
            yield line[6:]


async def stream_completion(url: str, body: dict[str, Any], on_event: Any = None) -> Answer:
    """Stream /v1/completions to its end; `on_event(answer)` is awaited after each event."""
    answer = Answer()
    timeout = aiohttp.ClientTimeout(total=90)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url + "/v1/completions", json={**body, "stream": True}) as response,
    ):
        assert response.status == 200, await response.text()
        async for data in events(response):
            if data == "[DONE]":
                answer.is_done = True
                break
            chunk = json.loads(data)
            if "error" in chunk:
                answer.error = chunk["error"]
                continue
            answer.usage = chunk.get("usage") or answer.usage
            for choice in chunk["choices"]:
                answer.text += choice["text"]
                answer.pieces.append(choice["text"])
                answer.finish = choice["finish_reason"] or answer.finish
            answer.events += 1
            if on_event is not None:
                await on_event(answer)
    return answer
