"""The openai package as a client of POST /v1/responses."""

import asyncio
import json
from typing import Any

import openai
import pytest
from fake_engine import WORDS
from openai.types.responses import response_create_params

from api_proc.responses.schema import FIELDS, ResponseRequest
from quartet.wire.errors import RequestError

TEXT = "".join(WORDS)


def turns_of(api: Any) -> Any:
    return json.loads(api.engine.outputs[-1].request.prompt.messages)


async def test_a_response(client: openai.AsyncOpenAI, api: Any) -> None:
    answer = await client.responses.create(model="toy", input="hi", instructions="Be brief.", metadata={"a": "b"})
    assert answer.id.startswith("resp_")
    assert (answer.object, answer.status, answer.model, answer.error) == ("response", "completed", "toy", None)
    assert answer.output_text == TEXT
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (5, 4, 9)
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.output_tokens_details.reasoning_tokens == 0
    assert (answer.metadata, answer.instructions, answer.tool_choice) == ({"a": "b"}, "Be brief.", "auto")
    assert answer._request_id
    assert turns_of(api) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


async def test_a_stream(client: openai.AsyncOpenAI) -> None:
    events = [event async for event in await client.responses.create(model="toy", input="hi", stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 4,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == TEXT
    async with client.responses.stream(model="toy", input="hi") as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert text == final.output_text == TEXT


async def test_what_reaches_the_engine(client: openai.AsyncOpenAI, api: Any) -> None:
    items: Any = [
        {"role": "developer", "content": "Always."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "user", "content": "c"},
        {"type": None, "role": "user", "content": "d"},
    ]
    await client.responses.create(
        model="toy",
        input=items,
        instructions="You help.",
        temperature=0,
        top_p=0.5,
        max_output_tokens=7,
        prompt_cache_key="someone",
        store=True,
        truncation="disabled",
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "none", "summary": "auto"},
        text={"format": {"type": "text"}, "verbosity": "medium"},
        safety_identifier="x",
        extra_body={"seed": 5, "priority": 3, "unknown": 1},
    )
    first, *others = turns_of(api)
    assert first == {
        "role": "system",
        "content": [{"type": "text", "text": "You help."}, {"type": "text", "text": "Always."}],
    }
    assert [turn["role"] for turn in others] == ["user", "assistant", "tool", "tool", "user", "user"]
    assistant = others[1]
    assert (assistant["content"], assistant["reasoning_content"]) == ("I look.", "hm")
    assert [call["id"] for call in assistant["tool_calls"]] == ["c1", "c2"]
    assert [(turn["tool_call_id"], turn["content"]) for turn in others[2:4]] == [("c1", "one"), ("c2", "two")]
    request = api.engine.outputs[0].request
    assert (request.routing_key, request.priority) == ("someone", 3)
    params = request.params
    assert (params.temperature, params.top_p, params.max_new_tokens, params.seed) == (0.0, 0.5, 7, 5)
    assert params.logprobs == -1
    assert json.loads(request.prompt.template_args)["enable_thinking"] is False


def test_every_field_of_the_package_is_known() -> None:
    """Served, without effect, or refused by name: a version with further fields is looked at here."""
    known = {*ResponseRequest.__struct_fields__, *FIELDS.refused, *FIELDS.without_effect}
    fields = response_create_params.ResponseCreateParamsBase.__annotations__.keys()
    assert fields <= known, fields - known


async def test_the_end_by_length_is_incomplete(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model="toy", input="hi", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text == "".join(WORDS[:2])
    stream = await client.responses.create(model="toy", input="hi", max_output_tokens=2, stream=True)
    last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    assert last.response.output[0].status == "incomplete"  # type: ignore[union-attr]


async def test_log_probabilities(client: openai.AsyncOpenAI) -> None:
    options: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = await client.responses.create(model="toy", input="hi", **options)
    part: Any = answer.output[0].content[0]  # type: ignore[union-attr, index]
    assert [entry.token for entry in part.logprobs] == list(WORDS)
    assert len(part.logprobs[0].top_logprobs) == 2
    stream = await client.responses.create(model="toy", input="hi", stream=True, **options)
    deltas = [event async for event in stream if event.type == "response.output_text.delta"]
    assert [entry.token for delta in deltas for entry in delta.logprobs] == list(WORDS)
    plain: Any = (await client.responses.create(model="toy", input="hi")).output[0]
    assert plain.content[0].logprobs == []


async def test_an_error_midway_raises(client: openai.AsyncOpenAI, api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        await asyncio.sleep(0.01)
        output.text("some")
        output.fail(RequestError(500, "out_of_memory", "it does not fit"))

    api.engine.script = script
    stream = await client.responses.create(model="toy", input="hi", stream=True)
    with pytest.raises(openai.APIError, match="does not fit"):
        async for _ in stream:
            pass
    _, body, _ = await api.post("/v1/responses", {"input": "hi", "stream": True})
    event, _, data = body.strip().split("\n\n")[-1].partition("\n")
    response = json.loads(data.removeprefix("data: "))["response"]
    assert event == "event: response.failed"
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"truncation": "auto"}, "truncation"),
        ({"truncation": "some"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"logprobs": True}, "logprobs"),
        ({"lora_path": "x"}, "lora_path"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"return_token_ids": True}, "return_token_ids"),
    ],
)
async def test_the_field_at_fault_is_named(api: Any, fields: dict[str, Any], param: str) -> None:
    status, body, _ = await api.post("/v1/responses", {"input": "hi", **fields})
    assert status == 400
    assert (body["error"]["type"], body["error"]["param"]) == ("invalid_request_error", param), body
    assert not api.engine.outputs
