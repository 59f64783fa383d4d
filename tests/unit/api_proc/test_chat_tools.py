"""Tools, tool_choice, and messages with calls and results: what is passed on, and what is refused by its name."""

import json
from typing import Any

import msgspec
import pytest
from fake_engine import MODEL

from api_proc.openai.chat import decoder
from api_proc.openai.chat_format import format_of
from api_proc.openai.chat_grammar import chat_grammar
from api_proc.openai.chat_messages import chat_prompt
from api_proc.openai.schema import ChatRequest
from api_proc.openai.tools import tool_use
from api_proc.openai.unsupported import refuse_unsupported
from api_proc.server.bodies import decode_body
from quartet.wire.config import Config, ServerConfig
from quartet.wire.errors import RequestError
from quartet.wire.frames import Grammar

USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TOOLS = [tool("look"), tool("find")]


def chat(**fields: Any) -> ChatRequest:
    return decode_body(decoder, json.dumps({"messages": [USER], **fields}).encode())


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        request = chat(**fields)
        refuse_unsupported(request)
        use = tool_use(request)
        chat_prompt(request, use.described() if use else None)
    assert caught.value.status == 400
    assert caught.value.param is not None
    return caught.value


@pytest.mark.parametrize(
    ("choice", "shown", "callable_", "flags"),
    [
        (None, "look find", "look find", (False, False)),
        ("auto", "look find", "look find", (False, False)),
        ("required", "look find", "look find", (True, False)),
        (tool("find"), "look find", "find", (True, True)),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("find")]}}, "find", "find", (0, 0)),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": TOOLS}}, "look find", "look find",
         (True, False)),
    ],
)  # fmt: skip
def test_what_a_choice_allows(choice: Any, shown: str, callable_: str, flags: tuple[bool, bool]) -> None:
    use = tool_use(chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False))
    assert use is not None
    assert [one.name for one in use.shown] == shown.split()
    assert [one.name for one in use.callable] == callable_.split()
    assert (use.must_call, use.is_named, use.is_single) == (*flags, True)


@pytest.mark.parametrize("fields", [{"tools": TOOLS, "tool_choice": "none"}, {"tools": []}, {"tool_choice": "auto"}])
def test_requests_without_tools(fields: dict[str, Any]) -> None:
    assert tool_use(chat(**fields)) is None


def test_tools_as_templates_see_them() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    use = tool_use(chat(tools=[tool("look", description="look at", parameters=schema, strict=True), tool("go")]))
    assert use is not None
    assert json.loads(use.described()) == [
        tool("look", description="look at", parameters=schema),
        tool("go", parameters={"type": "object", "properties": {}}),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("look"), tool("look")]}, "tools[1].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool("a", parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool("a", parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": {}}, "tools"),
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": tool("gone")}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
         "tool_choice.allowed_tools.tools"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": [{"role": "tool"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}], "continue_final_message": True},
         "continue_final_message"),
        ({"reasoning_effort": "hard"}, "reasoning_effort"),
    ],
)  # fmt: skip
def test_wrong_values_name_their_field(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert (error.code, error.param) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("fields", "param", "hint"),
    [
        ({"functions": [{"name": "look"}]}, "functions", "tools"),
        ({"function_call": {"name": "look"}}, "function_call", "tool_choice"),
        ({"messages": [{"role": "function", "name": "look", "content": "x"}]}, "messages[0].role", "tool"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "look"}}]}, "messages[0].function_call",
         "tool_calls"),
        ({"tools": [{"type": "custom", "custom": {"name": "sql"}}]}, "tools[0].type", "function"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type", "function"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]}, "messages[0].tool_calls[0].type",
         ""),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_with_a_hint(fields: dict[str, Any], param: str, hint: str) -> None:
    error = refused(**fields)
    assert (error.code, error.param) == ("unsupported_parameter", param)
    assert hint in error.message


def test_calls_results_and_thinking_reach_the_template() -> None:
    request = chat(
        messages=[
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "hm"},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "a lamp"}]},
            {"role": "assistant", "content": "A lamp.", "reasoning_content": "so", "tool_calls": [], "refusal": None},
        ]
    )
    assert msgspec.json.decode(chat_prompt(request, None).messages) == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": [{"type": "text", "text": "a lamp"}], "tool_call_id": "call_1"},
        {"role": "assistant", "content": "A lamp.", "reasoning_content": "so"},
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
         {"reasoning_effort": "none", "enable_thinking": True, "thinking": False}),
        ({"chat_template_kwargs": {"thinking": True}}, {"thinking": True}),
    ],
)  # fmt: skip
def test_how_much_to_think_reaches_the_template(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    arguments = chat_prompt(chat(**fields), None).template_args
    assert arguments is not None
    assert json.loads(arguments) == expected


def grammar(**fields: Any) -> Grammar | None:
    """Return what the output of a model in Hermes' form, which thinks, has to match."""
    request = chat(**fields)
    server = ServerConfig(tool_call_parser="hermes", reasoning_parser="think")
    use = tool_use(request)
    return chat_grammar(request, use, format_of(Config(server=server, resolved=MODEL), use))


STRICT = [tool("look", strict=True, parameters={"type": "object", "properties": {"at": {"type": "integer"}}})]
FORMAT = {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("fields", "kinds", "param"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, ["tools"], "tool_choice"),
        ({"tools": TOOLS, "tool_choice": tool("find")}, ["tools"], "tool_choice"),
        ({"tools": STRICT}, ["tools"], "tools"),
        ({"tools": TOOLS, **FORMAT}, ["tools", "json_object"], "response_format"),
        ({"tools": TOOLS, "tool_choice": "required", **FORMAT}, ["tools"], "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "none", **FORMAT}, ["json_object"], "response_format"),
        (FORMAT, ["json_object"], "response_format"),
    ],
)
def test_what_the_output_has_to_match(fields: dict[str, Any], kinds: list[str], param: str) -> None:
    found = grammar(**fields)
    assert found is not None
    assert (found.after, found.opening, found.param) == ("</think>", "<think>", param)
    assert [one.kind for one in (found, found.alternative) if one is not None] == kinds
    named = isinstance(fields.get("tool_choice"), dict)
    assert ("look" in found.source) == (kinds[0] == "tools" and not named)


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS}, {"tools": STRICT, "tool_choice": "none"}])
def test_outputs_without_a_grammar(fields: dict[str, Any]) -> None:
    assert grammar(**fields) is None
