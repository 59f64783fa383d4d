"""A client's JSON schema -> one that llguidance takes, with the same values or fewer; bounded before it is compiled."""

from collections.abc import Iterator
from typing import Any

import msgspec

from tokenizer_proc.grammar_bounds import MAX_REGEX_BYTES, GrammarError, check_bytes

MAX_DEPTH = 32
"""Schemas within schemas."""
MAX_PROPERTIES = 1000
MAX_ENUM_VALUES = 5000

KNOWN_FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
_MAPS_OF_SCHEMAS = frozenset(["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"])
_VALUES = frozenset(["const", "enum", "default", "examples", "example"])
"""Members whose value is data, not a schema."""
_COMBINED = frozenset(["allOf", "anyOf", "oneOf", "$ref"])
_OF_OBJECTS = frozenset(["properties", "required", "patternProperties", "minProperties"])

Schema = dict[str, Any]


def read_schema(source: str) -> Schema:
    """Return a JSON schema as it is compiled; raises GrammarError for one that is wrong or beyond the bounds."""
    schema = _decode(source)
    every = list(_bounded(schema))
    for each in every:
        _check_references(each)
        _drop_remarks(each)
    if not any(map(_combines, every)):
        for each in every:
            _close(each)
    return schema


def _decode(source: str) -> Schema:
    try:
        schema = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError):
        raise GrammarError("it is not valid JSON, or nested too deeply") from None
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise GrammarError("a JSON schema is an object")
    if "x-guidance" in schema:
        raise GrammarError("x-guidance is not taken from a schema")
    return schema


def _bounded(schema: Schema) -> Iterator[Schema]:
    """Yield the schema and every one within it; raises GrammarError if there is too much."""
    properties = values = 0
    for each, depth in _schemas(schema):
        if depth > MAX_DEPTH:
            raise GrammarError(f"it has more than {MAX_DEPTH} schemas within one another")
        properties += _length(each, "properties") + _length(each, "patternProperties")
        values += _length(each, "enum")
        if properties > MAX_PROPERTIES:
            raise GrammarError(f"it has more than {MAX_PROPERTIES} properties")
        if values > MAX_ENUM_VALUES:
            raise GrammarError(f"it has more than {MAX_ENUM_VALUES} values in enum")
        yield each


def _schemas(schema: Schema) -> Iterator[tuple[Schema, int]]:
    """Yield the schema and every one within it, with its depth."""
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, list):
            waiting += ((each, depth) for each in value)
        if not isinstance(value, dict):
            continue
        yield value, depth
        for name, inner in value.items():
            if name in _MAPS_OF_SCHEMAS and isinstance(inner, dict):
                waiting += ((each, depth + 1) for each in inner.values())
            elif name not in _VALUES:
                waiting.append((inner, depth + 1))


def _check_references(schema: Schema) -> None:
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise GrammarError(f'$ref is only followed within the schema ("#/..."), and {reference[:80]!r} is elsewhere')
    names = schema.get("patternProperties")
    for pattern in (schema.get("pattern"), *(names if isinstance(names, dict) else ())):
        if isinstance(pattern, str):
            check_bytes("a pattern", pattern, MAX_REGEX_BYTES)


def _drop_remarks(schema: Schema) -> None:
    """Leave out what llguidance refuses though it changes no value: by the standard an unknown format is a remark."""
    name = schema.get("format")
    if isinstance(name, str) and name not in KNOWN_FORMATS:
        del schema["format"]
    if schema.get("uniqueItems") is False:
        del schema["uniqueItems"]


def _combines(schema: Schema) -> bool:
    """Return whether properties of an object are described in more than one place, so that none of them has all."""
    parts = _COMBINED & schema.keys()
    return len(parts) > 1 or _length(schema, "allOf") > 1 or bool(parts and _OF_OBJECTS & schema.keys())


def _close(schema: Schema) -> None:
    """Allow no other properties than those that are described, unless the schema says so: small models would go on
    with inventions of their own."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or "minProperties" in schema:
        return
    if properties and all(isinstance(name, str) and name in properties for name in required):
        schema.setdefault("additionalProperties", False)


def _length(schema: Schema, name: str) -> int:
    value = schema.get(name)
    return len(value) if isinstance(value, dict | list) else 0
