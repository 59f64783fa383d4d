"""Fields that ask for structured output, in the names of OpenAI, vLLM and SGLang -> one Grammar, or a refusal."""

import json
from typing import Any

import msgspec
import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error

from api_proc.openai.schema import ChatRequest
from api_proc.openai.structured import constraint
from quartet.wire.errors import RequestError
from quartet.wire.frames import Grammar

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))


def read(**fields: Any) -> Grammar | None:
    """Return the grammar of a chat request with these fields."""
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], **fields})
    return constraint(msgspec.json.decode(body, type=ChatRequest))


def format_of(**members: Any) -> dict[str, Any]:
    """Return a response_format with a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, **members}}


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": None, "regex": "", "choice": [], "guided_json": {}, "structured_outputs": {}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object", "")),
        (
            {"response_format": format_of(strict=True, description="what")},
            Grammar("json_schema", TEXT, param="response_format.json_schema.schema"),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}},
            Grammar("json_schema", "{}", param="response_format.json_schema.schema"),
        ),
        ({"json_schema": TEXT}, Grammar("json_schema", TEXT, param="json_schema")),
        ({"json_schema": SCHEMA}, Grammar("json_schema", TEXT, param="json_schema")),
        ({"regex": "[ab]+"}, Grammar("regex", "[ab]+", param="regex")),
        ({"ebnf": 'root ::= "a"'}, Grammar("gbnf", 'root ::= "a"', param="ebnf")),
        ({"grammar": 'start: "a"'}, Grammar("lark", 'start: "a"', param="grammar")),
        ({"grammar": 'root ::= "a"'}, Grammar("gbnf", 'root ::= "a"', param="grammar")),
        ({"grammar": 'start: "a ::= b"'}, Grammar("lark", 'start: "a ::= b"', param="grammar")),
        ({"grammar": '# x\n  a-b ::= "a"'}, Grammar("gbnf", '# x\n  a-b ::= "a"', param="grammar")),
        ({"choice": ["a", "é"]}, Grammar("choice", '["a","é"]', param="choice")),
        ({"guided_json": SCHEMA}, Grammar("json_schema", TEXT, param="guided_json")),
        ({"guided_regex": "a"}, Grammar("regex", "a", param="guided_regex")),
        ({"guided_choice": ["a"]}, Grammar("choice", '["a"]', param="guided_choice")),
        ({"guided_grammar": 'start: "a"'}, Grammar("lark", 'start: "a"', param="guided_grammar")),
        (
            {"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
            Grammar("json_schema", TEXT, whitespace=" ?", param="guided_json"),
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True, "regex": None}},
            Grammar("json_schema", TEXT, whitespace="", param="structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"json_object": True, "whitespace_pattern": " ", "disable_fallback": True}},
            Grammar("json_object", "", whitespace=" ", param="structured_outputs.json_object"),
        ),
        ({"structured_outputs": {"regex": "a"}}, Grammar("regex", "a", param="structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["a"]}}, Grammar("choice", '["a"]', param="structured_outputs.choice")),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            Grammar("lark", 'start: "a"', param="structured_outputs.grammar"),
        ),
    ],
)
def test_every_name_of_a_constraint_is_read(fields: dict[str, Any], grammar: Grammar | None) -> None:
    assert read(**fields) == grammar


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": format_of(schema="{")}, "response_format.json_schema.schema"),
        ({"response_format": format_of(schema=[1])}, "response_format.json_schema.schema"),
        ({"response_format": format_of(strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": format_of(name=1)}, "response_format.json_schema.name"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"json_schema": "nothing"}, "json_schema"),
        ({"json_schema": json.loads('{"a":' * 100 + "1" + "}" * 100)}, "json_schema"),
        ({"regex": ["a"]}, "regex"),
        ({"ebnf": 1}, "ebnf"),
        ({"choice": "a"}, "choice"),
        ({"choice": ["a", ""]}, "choice"),
        ({"choice": ["a", 1]}, "choice"),
        ({"guided_json": 5}, "guided_json"),
        ({"structured_outputs": []}, None),
        ({"structured_outputs": [1]}, "structured_outputs"),
        ({"structured_outputs": {"disable_fallback": True}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_additional_properties": True}},
            "structured_outputs.disable_additional_properties",
        ),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        (
            {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"regex": "a", "guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(fields: dict[str, Any], param: str | None) -> None:
    if param is None:
        assert read(**fields) is None
        return
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


def test_two_constraints_are_refused_by_both_names() -> None:
    with pytest.raises(RequestError, match=r"response_format.*regex"):
        read(response_format={"type": "json_object"}, regex="a")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_grammar_reaches_the_engine_on_both_routes(api: Any, path: str) -> None:
    body = {"messages": MESSAGES} if path == CHAT else {"prompt": "x"}
    assert (await api.post(path, {**body, "regex": "[0-9]+"}))[0] == 200
    assert api.engine.outputs[-1].request.params.grammar == Grammar("regex", "[0-9]+", param="regex")
    assert (await api.post(path, body))[0] == 200
    assert api.engine.outputs[-1].request.params.grammar is None


@pytest.mark.parametrize("field", [{"min_tokens": 2}, {"ignore_eos": True}])
async def test_fields_that_move_the_end_do_not_go_with_a_grammar(api: Any, field: dict[str, Any]) -> None:
    (name,) = field
    status, body, _ = await api.post(COMPLETIONS, {"prompt": "x", "regex": "a+", **field})
    assert status == 400
    assert_error(body, "invalid_value", name)
    assert "the grammar decides" in body["error"]["message"]
