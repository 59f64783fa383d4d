"""Values without quotes: what they are is decided by the tool's schema."""

import json

import pytest

from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.pieces import CallArguments
from api_proc.parsing.schema_types import property_types
from api_proc.parsing.typed_value import TypedValue

END = "</parameter>"


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, "null", "null"),
        ({"type": "string"}, ' "a" \n', ' "a" \n'),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, " 12 ", 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "integer"}, '"12"', "12"),
        ({"type": "number"}, "3", 3),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, "['a', 1, (2,)]", ["a", 1, [2]]),
        ({"type": "object"}, '{"a": {"b": null}}', {"a": {"b": None}}),
        ({"type": "object"}, "{'a': True,}", {"a": True}),
        ({"type": "object"}, "{'a': ", "{'a': "),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "12", "12"),
        ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "number"]}, "12", 12),
        ({"type": ["string", "integer"]}, "a", "a"),
        ({"type": ["string", "integer"]}, '"a"', '"a"'),
        ({"anyOf": [{"type": "string"}, {"type": "array"}]}, "[1]", [1]),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/point"}]}, '{"x": 1}', {"x": 1}),
        ({"$ref": "#/$defs/point"}, '{"x": 1}', {"x": 1}),
        ({"$ref": "#/$defs/nothing"}, "1", 1),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"const": "true"}, "true", "true"),
        ({}, "12", 12),
        ({}, '"a"', '"a"'),
        ({}, "a", "a"),
        (None, "[1, 2]", [1, 2]),
        ({}, "[" * 20_000, "[" * 20_000),
    ],
)
def test_a_value_has_the_type_that_the_schema_allows(schema: object, text: str, value: object) -> None:
    parameters = {"properties": {"x": schema}, "$defs": {"point": {"type": "object"}}}
    writer = PieceWriter(["f"])
    writer.start("f")
    reader = TypedValue(writer, property_types(parameters, "x"), END, has_lines=True)
    whole = f"\n{text}\n{END} rest"
    assert whole[reader.read(whole, 0) :] == " rest"
    assert reader.is_done
    given = "".join(piece.text for piece in writer.take() if isinstance(piece, CallArguments))
    assert json.loads(given) == value


@pytest.mark.parametrize(
    "parameters", [{}, {"properties": []}, {"properties": {"x": True}}, {"properties": {"x": {"type": 1}}}]
)
def test_a_schema_that_says_nothing_allows_all(parameters: dict[str, object]) -> None:
    assert property_types(parameters, "x") == frozenset()


def test_a_reference_that_never_ends_says_nothing() -> None:
    assert property_types({"properties": {"x": {"$ref": "#/properties/x"}}}, "x") == frozenset()
