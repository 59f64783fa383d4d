"""Tools, thinking and structured output as the clients of Anthropic's and of OpenAI's Responses API know them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pydantic
import pytest
from conftest import Api
from test_chat_parsed import PIECES, saying, thinker  # noqa: F401

SCHEMA = {"type": "object", "properties": {"at": {"type": "integer"}}}
CLAUDE_TOOLS: Any = [
    {"name": "Look", "description": "Look at something.", "input_schema": SCHEMA},
    {"name": "find", "input_schema": {"type": "object"}},
]
OPENAI_TOOLS: Any = [
    {"type": "function", "name": "Look", "description": "Look at something.", "parameters": SCHEMA, "strict": False},
    {"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False},
]
QUESTION = "what is at 5?"


class City(pydantic.BaseModel):
    name: str
    size: int


@pytest.fixture
async def claude(thinker: Api) -> AsyncIterator[anthropic.AsyncAnthropic]:  # noqa: F811
    async with anthropic.AsyncAnthropic(base_url=thinker.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
async def client(thinker: Api) -> AsyncIterator[openai.AsyncOpenAI]:  # noqa: F811
    async with openai.AsyncOpenAI(base_url=thinker.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def prompt_of(api: Api) -> tuple[list[Any], list[Any]]:
    """Return the messages and the tools of the last prompt."""
    prompt: Any = api.engine.outputs[-1].request.prompt
    return json.loads(prompt.messages), json.loads(prompt.tools or b"[]")


def check_second_turn(api: Api) -> None:
    """The calls, their results and the thinking reach the chat template."""
    messages, tools = prompt_of(api)
    assert [tool["function"]["name"] for tool in tools] == ["Look", "find"]
    assert tools[0]["function"]["parameters"] == SCHEMA
    user, assistant, one, two = messages
    assert user == {"role": "user", "content": QUESTION}
    assert (assistant["role"], assistant["content"]) == ("assistant", "I look.")
    assert assistant["reasoning_content"] == "Let me see."
    names = [call["function"]["name"] for call in assistant["tool_calls"]]
    arguments = [call["function"]["arguments"] for call in assistant["tool_calls"]]
    assert names == ["Look", "find"]
    assert [json.loads(one) if isinstance(one, str) else one for one in arguments] == [{"at": 5}, {}]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert [(turn["role"], turn["tool_call_id"], turn["content"]) for turn in (one, two)] == [
        ("tool", ids[0], "a lamp"),
        ("tool", ids[1], "Error: nothing"),
    ]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_agent_of_anthropics(claude: anthropic.AsyncAnthropic, thinker: Api, is_stream: bool) -> None:  # noqa: F811
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    asked: Any = {
        "model": "toy",
        "max_tokens": 2000,
        "tools": CLAUDE_TOOLS,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    if is_stream:
        async with claude.messages.stream(messages=messages, **asked) as stream:
            answer = await stream.get_final_message()
    else:
        answer = await claude.messages.create(messages=messages, **asked)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, text, look, find = answer.content
    assert thinking.type == "thinking" and thinking.thinking == "Let me see." and thinking.signature
    assert text.type == "text" and text.text == "I look."
    assert look.type == "tool_use" and (look.name, look.input) == ("Look", {"at": 5})
    assert find.type == "tool_use" and (find.name, find.input) == ("find", {})
    assert answer.stop_reason == "tool_use"
    assert answer.usage.output_tokens_details is not None
    assert answer.usage.output_tokens_details.thinking_tokens == 4
    results = [
        {"type": "tool_result", "tool_use_id": look.id, "content": [{"type": "text", "text": "a lamp"}]},
        {"type": "tool_result", "tool_use_id": find.id, "content": "nothing", "is_error": True},
    ]
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    await claude.messages.create(messages=messages, **asked)
    check_second_turn(thinker)
    prompt: Any = thinker.engine.outputs[-1].request.prompt
    assert json.loads(prompt.template_args) == {"enable_thinking": True}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_agent_of_openais(client: openai.AsyncOpenAI, thinker: Api, is_stream: bool) -> None:  # noqa: F811
    items: list[Any] = [{"role": "user", "content": QUESTION}]
    asked: Any = {"model": "toy", "tools": OPENAI_TOOLS}
    if is_stream:
        async with client.responses.stream(input=items, **asked) as stream:
            answer: Any = await stream.get_final_response()
    else:
        answer = await client.responses.create(input=items, **asked)
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    reasoning, _, look, find = answer.output
    assert reasoning.content[0].text == "Let me see."
    assert answer.output_text == "I look."
    assert (look.name, json.loads(look.arguments)) == ("Look", {"at": 5})
    assert (find.name, json.loads(find.arguments)) == ("find", {})
    assert answer.status == "completed"
    assert answer.usage.output_tokens_details.reasoning_tokens == 4
    items += [item.to_dict() for item in answer.output]
    items += [
        {"type": "function_call_output", "call_id": look.call_id, "output": "a lamp"},
        {"type": "function_call_output", "call_id": find.call_id, "output": "Error: nothing"},
    ]
    await client.responses.create(input=items, **asked)
    check_second_turn(thinker)


async def test_one_call_at_most(claude: anthropic.AsyncAnthropic, client: openai.AsyncOpenAI) -> None:
    choice: Any = {"type": "auto", "disable_parallel_tool_use": True}
    messages: Any = [{"role": "user", "content": QUESTION}]
    answer = await claude.messages.create(
        model="toy", max_tokens=99, messages=messages, tools=CLAUDE_TOOLS, tool_choice=choice
    )
    assert [block.type for block in answer.content].count("tool_use") == 1
    response = await client.responses.create(model="toy", input=QUESTION, tools=OPENAI_TOOLS, parallel_tool_calls=False)
    assert [item.type for item in response.output].count("function_call") == 1
    assert response.parallel_tool_calls is False


async def test_a_call_that_is_cut_off(claude: anthropic.AsyncAnthropic, thinker: Api) -> None:  # noqa: F811
    """The client gets the members that are complete, whether it reads events or the whole."""
    cut = (*PIECES[:9], '{"name": "Look", "arguments": {"at": 5, "of": "the')
    thinker.engine.script = saying(cut, "length")
    asked: Any = {"model": "toy", "max_tokens": len(cut), "tools": CLAUDE_TOOLS}
    messages: Any = [{"role": "user", "content": QUESTION}]
    answer = await claude.messages.create(messages=messages, **asked)
    async with claude.messages.stream(messages=messages, **asked) as stream:
        final = await stream.get_final_message()
    for one in (answer, final):
        assert one.stop_reason == "max_tokens"
        call = one.content[-1]
        assert call.type == "tool_use" and call.input == {"at": 5}


async def test_structured_output(claude: anthropic.AsyncAnthropic, client: openai.AsyncOpenAI, thinker: Api) -> None:  # noqa: F811
    thinker.engine.script = saying(("<think>", "Hm", "</think>", '{"name": "Par', 'is", "size": 2}'))
    messages: Any = [{"role": "user", "content": QUESTION}]
    parsed = await claude.messages.parse(model="toy", max_tokens=99, messages=messages, output_format=City)
    assert parsed.parsed_output == City(name="Paris", size=2)
    response = await client.responses.parse(model="toy", input=QUESTION, text_format=City)
    assert response.output_parsed == City(name="Paris", size=2)
    async with client.responses.stream(model="toy", input=QUESTION, text_format=City) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == City(name="Paris", size=2)
    for output in thinker.engine.outputs:
        grammar = output.request.params.grammar
        assert grammar is not None
        assert (grammar.kind, grammar.after) == ("json_schema", "</think>")
        assert set(json.loads(grammar.source)["properties"]) == {"name", "size"}


async def test_errors_of_tools_and_formats_name_fields_of_the_route(thinker: Api) -> None:  # noqa: F811
    schema: Any = {"type": "object"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    message = {"max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    _, body, _ = await thinker.post(
        "/v1/messages", message | {"output_format": {"type": "json_schema", "schema": schema}}
    )
    assert body["error"]["message"].startswith("output_config.format.schema ")
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    _, body, _ = await thinker.post("/v1/responses", {"input": "x", "text": text})
    assert body["error"]["param"] == "text.format.schema"
    choice = {"type": "tool", "name": "other"}
    _, body, _ = await thinker.post("/v1/messages", message | {"tools": CLAUDE_TOOLS, "tool_choice": choice})
    assert body["error"]["message"].startswith("tool_choice.name ")


async def test_a_tool_that_must_be_called(thinker: Api) -> None:  # noqa: F811
    """Whatever the API, the output has to match the grammar of the same calls."""
    message = {"max_tokens": 99, "messages": [{"role": "user", "content": QUESTION}], "tools": CLAUDE_TOOLS}
    response = {"input": QUESTION, "tools": OPENAI_TOOLS}
    for path, body, choices in (
        ("/v1/messages", message, ({"type": "any"}, {"type": "tool", "name": "Look"})),
        ("/v1/responses", response, ("required", {"type": "function", "name": "Look"})),
    ):
        for choice in choices:
            status, answer, _ = await thinker.post(path, body | {"tool_choice": choice})
            assert status == 200, answer
            if path == "/v1/messages":
                assert answer["stop_reason"] == "tool_use", "also where the client has named the tool"
    required, named, *others = (output.request.params.grammar for output in thinker.engine.outputs)
    assert required is not None and named is not None and required != named
    assert others == [required, named]
