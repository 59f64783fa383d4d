"""Clients for runs under faults: every kind of request over HTTP, checked event by event against a calm run."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.support.client import events

MODEL = "smollm2"
TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
WAIT_LIMIT_S = 180.0


@dataclass
class Outcome:
    """What one request was answered, by choice; `names` are the tokens of log-probabilities."""

    texts: dict[int, str] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    usage: tuple[int, int] | None = None
    dones: int = 0
    error: dict[str, Any] | None = None
    faults: list[str] = field(default_factory=list)
    """What no answer may be, with or without a calm run to compare with."""

    def same_as(self, other: "Outcome") -> bool:
        """Say whether both were answered alike."""
        mine = (self.texts, self.names, self.finishes, self.usage, self.dones)
        return mine == (other.texts, other.names, other.finishes, other.usage, other.dones)


@dataclass
class Body:
    """One request: where it goes, and what is sent."""

    path: str
    fields: dict[str, Any]

    @property
    def is_streamed(self) -> bool:
        """Whether the answer is a stream of events."""
        return bool(self.fields.get("stream"))


def bodies(chance: random.Random, count: int, tokens: int) -> list[Body]:
    """Return requests of every kind, of up to `tokens` tokens each; stop strings are added by `with_stops`."""
    kinds: list[dict[str, Any]] = [
        {},
        {"n": 2},
        {"logprobs": 2},
        {"echo": True},
        {"stream": False},
        {"stream": False, "n": 2},
        {"stop": ["?"]},
        {"stop": ["?"], "min_tokens": 12},
    ]
    made = []
    for i in range(count):
        fields = {"model": MODEL, "max_tokens": chance.randrange(tokens // 4, tokens), "temperature": 0, "stream": True}
        words = " ".join(
            chance.choice(("count", "apples", "é", "世界", "and", "stars")) for _ in range(chance.randrange(60))
        )
        if i % 4 == 3:
            extra = chance.choice(({}, {"logprobs": True, "top_logprobs": 1}, {"stream": False}))
            body = Body(CHAT, {**fields, **extra, "messages": [{"role": "user", "content": f"{i}: {words}"}]})
        else:
            body = Body(TEXT, {**fields, **kinds[i % len(kinds)], "prompt": f"{i}: {words}"})
        if body.is_streamed:
            body.fields["stream_options"] = {"include_usage": True}
        made.append(body)
    return made


def with_stop(body: Body, calm: Outcome) -> Body:
    """Return the request with a stop string from the middle of its calm answer, if it is to have one."""
    if "stop" not in body.fields:
        return body
    text = calm.texts[0]
    return Body(body.path, {**body.fields, "stop": [text[len(text) // 2 :][:3]]})


async def ask(session: aiohttp.ClientSession, url: str, body: Body, calm: Outcome | None = None) -> Outcome:
    """Send a request and read its answer to the end; each event is compared with the calm answer as it comes."""
    outcome = Outcome()
    timeout = aiohttp.ClientTimeout(total=WAIT_LIMIT_S)
    async with session.post(url + body.path, json=body.fields, timeout=timeout) as response:
        if response.status != 200:
            outcome.error = {"status": response.status, **(await response.json())["error"]}
        elif not body.is_streamed:
            take_chunk(outcome, await response.json(), calm)
            outcome.dones = 1
        else:
            async for data in events(response):
                if data == "[DONE]":
                    outcome.dones += 1
                elif outcome.dones:
                    outcome.faults.append("an event after [DONE]")
                else:
                    take_chunk(outcome, json.loads(data), calm)
    return outcome


def take_chunk(outcome: Outcome, chunk: dict[str, Any], calm: Outcome | None) -> None:
    """Add one event, or a whole answer, and note what must not be."""
    if "error" in chunk:
        outcome.error = chunk["error"]
        return
    for choice in chunk["choices"]:
        index = choice["index"]
        if index in outcome.finishes:
            outcome.faults.append(f"output of choice {index} after its end")
        message = choice.get("delta") or choice.get("message") or {}
        text = choice["text"] if "text" in choice else message.get("content") or ""
        outcome.texts[index] = outcome.texts.get(index, "") + text
        outcome.names.setdefault(index, []).extend(token_names(choice.get("logprobs") or {}))
        if choice["finish_reason"] is not None:
            outcome.finishes[index] = choice["finish_reason"]
        if calm is not None and not calm.texts[index].startswith(outcome.texts[index]):
            outcome.faults.append(f"choice {index} reads {outcome.texts[index][-60:]!r}")
    usage = chunk.get("usage")
    if usage is not None:
        if outcome.usage is not None:
            outcome.faults.append("usage came twice")
        outcome.usage = (usage["prompt_tokens"], usage["completion_tokens"])
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        if not 0 <= cached <= usage["prompt_tokens"]:
            outcome.faults.append(f"{cached} cached tokens of {usage['prompt_tokens']}")


def token_names(logprobs: dict[str, Any]) -> list[str]:
    """Return the tokens that log-probabilities were given for, in either API's form."""
    if "content" in logprobs:
        return [one["token"] for one in logprobs["content"]]
    return list(logprobs.get("tokens") or [])
