"""Refusals of Anthropic's routes: their shape, and the field they name."""

from typing import Any

import pytest

from quartet.wire.errors import RequestError
from quartet.wire.lengths import context_length_exceeded

MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


def assert_error(body: Any, kind: str) -> str:
    assert set(body) == {"type", "error"} and body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == kind
    message: str = body["error"]["message"]
    assert message and "Traceback" not in message
    return message


def content(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences.0"),
        ({"stream": "yes"}, "stream"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        (content({"type": "text"}), "messages.0.content.0.text"),
        (content({"type": "text", "text": "x"}, {"type": "image", "source": {}}), "messages.0.content.1"),
        (content({"type": "document", "source": {}}), "messages.0.content.0"),
        (content({"type": "web_search_tool_result", "content": {"type": "e"}}), "messages.0.content.0"),
        (content({"type": "tool_result", "content": "x"}), "messages.0.content.0.tool_use_id"),
        (content({"type": "tool_result", "tool_use_id": "t", "content": {}}), "messages.0.content.0.content"),
        (
            content({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}),
            "messages.0.content.0.content.0",
        ),
        (content(USE), "messages.0.content.0"),
        (content({"type": "tool_result", "tool_use_id": "t"}, role="assistant"), "messages.0.content.0"),
        (content({**USE, "input": "x"}, role="assistant"), "messages.0.content.0.input"),
        (content({"type": "tool_use", "id": "t"}, role="assistant"), "messages.0.content.0.name"),
        (content(USE, role="assistant"), "messages.0"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]}, "tools.1.type"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools.0.name"),
        ({"tools": [TOOL | {"input_schema": {"type": "array"}}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"thinking": {"type": "some"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "display": "some"}}, "thinking.display"),
        ({"output_config": {"effort": "some"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"fallbacks": [{"model": "x"}]}, "fallbacks"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"add_generation_prompt": True}, "add_generation_prompt"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"service_tier": "fast"}, "service_tier"),
        ({"timeout": -1}, "timeout"),
        ({"n": 2}, "n"),
        ({"return_token_ids": True}, "return_token_ids"),
    ],
)
async def test_the_field_at_fault_is_named(api: Any, fields: dict[str, Any], field: str) -> None:
    status, body, _ = await api.post("/v1/messages", {"max_tokens": 9, "messages": MESSAGES, **fields})
    message = assert_error(body, "invalid_request_error")
    assert status == 400
    assert field in message.replace(":", " ").replace("(", " ").split(), message
    assert not api.engine.outputs


async def test_the_tool_runner_is_told_to_send_whole_conversations(api: Any) -> None:
    """The client goes on without a thread for this error code, and gives up at any other error."""
    fields = {"max_tokens": 9, "messages": MESSAGES, "thread": {"type": "create"}}
    status, body, _ = await api.post("/v1/messages", fields)
    details = body["error"].pop("details")
    assert (status, details["error_code"]) == (400, "thread_unsupported_request")
    assert assert_error(body, "invalid_request_error").startswith("thread is not supported")


async def test_arguments_that_are_nested_too_deeply_have_the_name_of_their_block(api: Any) -> None:
    """The system text is a message of the chat, so that indices differ."""
    deep: Any = {}
    for _ in range(70):
        deep = {"a": deep}
    use = [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "t", "name": "f", "input": deep}]
    messages = [*MESSAGES, {"role": "assistant", "content": use}, *MESSAGES]
    _, body, _ = await api.post("/v1/messages", {"system": "s", "max_tokens": 9, "messages": messages})
    assert assert_error(body, "invalid_request_error") == "messages.1.content.1.input has more than 64 levels"


async def test_what_comes_before_the_handler_has_the_same_shape(make_api: Any) -> None:
    api = await make_api(api_key=("k",), max_body_bytes=2000)
    good = {"max_tokens": 9, "messages": MESSAGES}
    key = {"x-api-key": "k"}
    cases: list[tuple[int, str, dict[str, Any]]] = [
        (401, "authentication_error", {"body": good}),
        (401, "authentication_error", {"body": good, "headers": {"x-api-key": "wrong"}}),
        (413, "request_too_large", {"data": b"x" * 3000, "headers": key}),
        (400, "invalid_request_error", {"data": b"{", "headers": key}),
        (404, "not_found_error", {"body": good | {"model": "other"}, "headers": key}),
        (415, "invalid_request_error", {"data": b"{}", "headers": key | {"Content-Encoding": "br"}}),
    ]
    for expected, kind, options in cases:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            status, body, headers = await api.post(path, **options)
            assert status == expected, (options, body)
            assert_error(body, kind)
            assert headers["request-id"] == headers["X-Request-Id"]
    status, body, _ = await api.get("/v1/messages", headers=key)
    assert status == 405
    assert_error(body, "invalid_request_error")
    status, body, _ = await api.post("/v1/messages/batches", good, headers=key)
    assert status == 404
    assert_error(body, "not_found_error")
    status, body, _ = await api.post("/v1/messages", good, headers=key)
    assert status == 200


async def test_a_server_that_drains_is_overloaded(api: Any) -> None:
    api.service.is_draining = True
    status, body, headers = await api.post("/v1/messages", {"max_tokens": 9, "messages": MESSAGES})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert_error(body, "overloaded_error")


async def test_errors_of_the_engine_name_fields_of_the_route(api: Any) -> None:
    api.engine.refusal = RequestError(400, "invalid_grammar", "response_format is too large", "response_format")
    fields = {"max_tokens": 9, "messages": MESSAGES}
    _, body, _ = await api.post("/v1/messages", fields)
    assert assert_error(body, "invalid_request_error") == "output_config.format.schema is too large"


@pytest.mark.parametrize("length", [70, "at least 70", "more than 70"])
async def test_a_prompt_that_is_too_long_has_the_words_that_agents_look_for(api: Any, length: int | str) -> None:
    api.engine.refusal = context_length_exceeded(64, length, "messages")
    _, body, _ = await api.post("/v1/messages", {"max_tokens": 9, "messages": MESSAGES})
    assert assert_error(body, "invalid_request_error") == "prompt is too long: 70 tokens > 64 maximum"


async def test_other_routes_keep_their_shape(api: Any) -> None:
    status, body, headers = await api.post("/v1/messagesx", {})
    assert status == 404 and set(body["error"]) == {"message", "type", "param", "code"}
    assert "request-id" not in headers
