"""Tools and thinking over HTTP, read by the openai client: streamed, whole, resumed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest
from conftest import Api, MakeApi
from fake_engine import FakeOutputStream, Script
from resume_rig import RESUME, events_of

from quartet.wire.frames import Encoded, Marker, pack_ids

PARSERS = {"tool_call_parser": "hermes", "reasoning_parser": "think"}
MESSAGES: Any = [{"role": "user", "content": "what is at 5?"}]
CLOSING = 99
PROMPT = [1, 2]


class Look(pydantic.BaseModel):
    """Look at something."""

    at: int


TOOLS: Any = [openai.pydantic_function_tool(Look), {"type": "function", "function": {"name": "find"}}]
PIECES = (
    "<think>", "\nLet me", " see.\n", "</think>", "\n\n", "I look", ".\n", "<tool", "_call>\n", '{"name": "Look", ',
    '"arguments": {"at"', ": 5}}\n</tool_call>", '\n<tool_call>\n{"name": "find", "arguments": {}}\n</tool_call>',
)  # fmt: skip


def saying(pieces: tuple[str, ...], reason: str = "stop") -> Script:
    async def script(output: FakeOutputStream) -> None:
        for piece in pieces:
            await asyncio.sleep(0)
            for choice in range(output.request.n):
                output.text(piece, choice, CLOSING if piece == "</think>" else 7)
        output.finish_all(reason, count=len(pieces))

    return script


@pytest.fixture
async def thinker(make_api: MakeApi) -> Api:
    """A model that thinks and calls."""
    api: Api = await make_api(**PARSERS)
    api.engine.script = saying(PIECES)
    generate = api.engine.generate

    async def with_ids(request: Any) -> FakeOutputStream:
        """The tokenizer's part: ids of markers."""
        output = await generate(request)
        markers = tuple(Marker(one.text, CLOSING if one.text == "</think>" else -1) for one in request.params.markers)
        params = request.params.__class__(markers=markers)
        output.encoded = Encoded(1, pack_ids(PROMPT), "", params)
        return output

    api.engine.generate = with_ids  # type: ignore[method-assign]
    return api


@pytest.fixture
async def client(thinker: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=thinker.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def check(message: Any) -> None:
    assert message.content == "I look."
    assert message.reasoning_content == message.reasoning == "Let me see."
    assert [call.function.name for call in message.tool_calls] == ["Look", "find"]
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"at": 5}, {}]
    assert len({call.id for call in message.tool_calls}) == 2


async def test_a_whole_message(client: openai.AsyncOpenAI, thinker: Api) -> None:
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES, tools=TOOLS)
    check(answer.choices[0].message)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4
    prompt: Any = thinker.engine.outputs[0].request.prompt
    assert [tool["function"]["name"] for tool in json.loads(prompt.tools)] == ["Look", "find"]
    assert [one.text for one in thinker.engine.outputs[0].request.params.markers] == ["<think>", "</think>"]


async def test_the_streaming_helper_puts_it_together(client: openai.AsyncOpenAI) -> None:
    parsed: list[Any] = []
    async with client.chat.completions.stream(
        model="toy", messages=MESSAGES, tools=TOOLS[:1], stream_options={"include_usage": True}
    ) as stream:
        parsed += [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
        completion = await stream.get_final_completion()
    message: Any = completion.choices[0].message
    assert [event.name for event in parsed] == ["Look"]
    assert message.tool_calls[0].function.parsed_arguments == Look(at=5)
    assert message.content.startswith("I look.")
    assert completion.usage is not None and completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens == 4


async def test_arguments_are_parsed_into_models(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(model="toy", messages=MESSAGES, tools=TOOLS[:1])
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.parsed_arguments == Look(at=5)


async def test_every_choice_has_calls_of_its_own(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES, tools=TOOLS, n=3)
    for choice in answer.choices:
        check(choice.message)
    assert len({call.id for choice in answer.choices for call in choice.message.tool_calls or ()}) == 6


async def test_thinking_that_the_prompt_has_begun(thinker: Api) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "<think>\nLet"}]
    thinker.engine.script = saying(PIECES[1:6])
    generate = thinker.engine.generate
    for text, reasoning in (("<|assistant|><think>\nLet", "Let me see."), ("<think></think>", None)):

        async def with_prompt(request: Any, text: str = text) -> FakeOutputStream:
            output = await generate(request)
            output.prompt_text = text
            return output

        thinker.engine.generate = with_prompt  # type: ignore[method-assign]
        body = {"messages": messages, "continue_final_message": True}
        _, answer, _ = await thinker.post("/v1/chat/completions", body)
        assert answer["choices"][0]["message"].get("reasoning") == reasoning


async def test_without_tools_calls_are_content_and_thinking_is_not(client: openai.AsyncOpenAI) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = await client.chat.completions.create(model="toy", messages=MESSAGES, **more)  # type: ignore[call-overload]
        message = answer.choices[0].message
        assert message.tool_calls is None
        assert message.reasoning == "Let me see."
        assert message.content == "".join(PIECES).partition("</think>\n\n")[2]
        assert answer.choices[0].finish_reason == "stop"


async def test_a_call_that_is_cut_off_keeps_what_was_sent(client: openai.AsyncOpenAI, thinker: Api) -> None:
    thinker.engine.script = saying(PIECES[:11], "length")
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.arguments == '{"at"'
    assert answer.choices[0].finish_reason == "length"


async def test_a_stream_that_is_resumed_is_the_same(thinker: Api) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "stream": True, "n": 2, "logprobs": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True}}  # fmt: skip
    response = await thinker.http.post(thinker.url + "/v1/chat/completions", json=body, headers=RESUME)
    events = await events_of(response)
    again = await thinker.http.get(thinker.url + response.headers["Content-Location"])
    assert await events_of(again) == events
    assert sum('"name":"Look"' in event for event in events) == 2


async def test_a_model_without_a_known_form_of_calls(make_api: MakeApi) -> None:
    for name, hint in (("auto", "is not known"), ("none", "parser none")):
        api = await make_api(tool_call_parser=name)
        status, body, _ = await api.post("/v1/chat/completions", {"messages": MESSAGES, "tools": TOOLS})
        assert (status, body["error"]["param"]) == (400, "tools")
        assert hint in body["error"]["message"]
        status, _, _ = await api.post(
            "/v1/chat/completions", {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "none"}
        )
        assert status == 200
