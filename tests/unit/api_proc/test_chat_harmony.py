"""Answers of gpt-oss over HTTP: channels become reasoning, content and calls, in streams and whole, however cut."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from conftest import Api, MakeApi
from fake_engine import FakeOutputStream, Script

MESSAGES: Any = [{"role": "user", "content": "Weather?"}]
TOOLS: Any = [{"type": "function", "function": {"name": name}} for name in ("get_weather", "stop")]
NEXT = "<|end|><|start|>assistant"
THOUGHT = f"<|channel|>analysis<|message|>They ask < for 「it」.{NEXT}"
CALL = (
    f"{THOUGHT}<|channel|>commentary<|message|>I look.{NEXT}"
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris <3"}'
)
ANSWER = f"{THOUGHT}<|channel|>final<|message|>It *rains*."


def saying(text: str, seed: int) -> Script:
    """Return a script that says the text in pieces of chance; the token that ends it is never shown."""
    generator = random.Random(seed)

    async def script(output: FakeOutputStream) -> None:
        places = sorted(generator.choices(range(len(text) + 1), k=12))
        for start, end in zip([0, *places], [*places, len(text)], strict=True):
            await asyncio.sleep(0)
            output.text(text[start:end], 0, 7)
        output.finish_all("stop", count=len(places) + 1)

    return script


@pytest.fixture
async def api(make_api: MakeApi) -> Api:
    made: Api = await make_api(tool_call_parser="gpt_oss", reasoning_parser="gpt_oss")
    return made


@pytest.fixture
async def client(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=api.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


async def streamed(client: openai.AsyncOpenAI) -> tuple[str, str, list[tuple[str, str]], str | None]:
    """Return reasoning, content, names and arguments of calls, and the reason of the end, from the deltas."""
    reasoning, content, reason = "", "", None
    calls: list[list[str]] = []
    async for chunk in await client.chat.completions.create(model="toy", messages=MESSAGES, tools=TOOLS, stream=True):
        (choice,) = chunk.choices
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or ():
            assert call.function is not None
            if call.function.name:
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments or ""
    return reasoning, content, [(name, arguments) for name, arguments in calls], reason


@pytest.mark.parametrize("seed", range(5))
async def test_a_call(api: Api, client: openai.AsyncOpenAI, seed: int) -> None:
    api.engine.script = saying(CALL, seed)
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES, tools=TOOLS)
    message: Any = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("They ask < for 「it」.", "I look.")
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris <3"})
    wanted = message.reasoning_content, message.content, [(call.function.name, call.function.arguments)], "tool_calls"
    assert await streamed(client) == wanted and answer.choices[0].finish_reason == "tool_calls"
    assert {"<|channel|>", "<|message|>", "<|call|>"} <= {
        one.text for one in api.engine.outputs[0].request.params.markers
    }


@pytest.mark.parametrize("seed", range(5))
async def test_an_answer(api: Api, client: openai.AsyncOpenAI, seed: int) -> None:
    api.engine.script = saying(ANSWER, seed)
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES)
    message: Any = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("They ask < for 「it」.", "It *rains*.")
    assert message.tool_calls is None and answer.choices[0].finish_reason == "stop"
    assert await streamed(client) == (message.reasoning_content, message.content, [], "stop")
