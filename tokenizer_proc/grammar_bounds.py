"""What is refused before llguidance sees it: sources that are too large, and schemas that ask for what it cannot do.

Counting costs less than a millisecond; the compiler's own time and memory are bounded by its process.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from quartet.wire.frames import Grammar

MAX_SOURCE_BYTES = 64 << 10
MAX_TOOLS_BYTES = 256 << 10
"""Tools of an agent: many schemas, each bounded by the API."""
MAX_REGEX_BYTES = 4 << 10
MAX_MARKER_BYTES = 256
MAX_MARKERS = 64
MAX_DEPTH = 32
"""Schemas within schemas."""
MAX_PROPERTIES = 1000
MAX_ENUM_VALUES = 5000
MAX_CHOICES = 1000

KNOWN_FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
_MAPS_OF_SCHEMAS = frozenset(["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"])
_VALUES = frozenset(["const", "enum", "default", "examples", "example"])
"""Members whose value is data, not a schema."""

Schema = dict[str, Any]


class GrammarError(Exception):
    """A grammar that cannot be used; the text says why."""


def check_bounds(grammar: Grammar) -> None:
    """Raise GrammarError if a grammar is too large."""
    limit = {"tools": MAX_TOOLS_BYTES, "regex": MAX_REGEX_BYTES}.get(grammar.kind, MAX_SOURCE_BYTES)
    _check_bytes("it", grammar.source, limit)
    _check_bytes("the regex of the whitespace", grammar.whitespace or "", MAX_REGEX_BYTES)
    if len(grammar.markers) > MAX_MARKERS:
        raise GrammarError(f"it has more than {MAX_MARKERS} markers")
    for text in (*grammar.markers, grammar.after, grammar.opening):
        _check_bytes("a marker", text, MAX_MARKER_BYTES)


def read_choices(source: str) -> list[str]:
    """Return the strings of a choice; raises GrammarError."""
    choices = msgspec.json.decode(source, type=list[str])
    if len(choices) > MAX_CHOICES:
        raise GrammarError(f"it has more than {MAX_CHOICES} choices")
    return choices


def read_schema(source: str) -> Schema:
    """Return a JSON schema without what has no effect on its values; raises GrammarError for one beyond the bounds.

    A `format` that is not known is left out: by the standard it is a remark. So is `uniqueItems: false`.
    """
    try:
        schema = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError):
        raise GrammarError("it is not valid JSON, or nested too deeply") from None
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise GrammarError("a JSON schema is an object")
    if "x-guidance" in schema:
        raise GrammarError("x-guidance is not taken from a schema")
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
        _check_reference(each.get("$ref"))
        _check_pattern(each)
        if isinstance(each.get("format"), str) and each["format"] not in KNOWN_FORMATS:
            del each["format"]
        if each.get("uniqueItems") is False:
            del each["uniqueItems"]
    return schema


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


def _check_reference(reference: Any) -> None:
    if isinstance(reference, str) and not reference.startswith("#"):
        raise GrammarError(f'$ref is only followed within the schema ("#/..."), and {reference[:80]!r} is elsewhere')


def _check_pattern(schema: Schema) -> None:
    names = schema.get("patternProperties")
    for pattern in (schema.get("pattern"), *(names if isinstance(names, dict) else ())):
        if isinstance(pattern, str):
            _check_bytes("a pattern", pattern, MAX_REGEX_BYTES)


def _check_bytes(what: str, text: str, limit: int) -> None:
    if len(text) > limit or len(text.encode("utf-8", "surrogatepass")) > limit:
        raise GrammarError(f"{what} has more than {limit} bytes")


def _length(schema: Schema, name: str) -> int:
    value = schema.get(name)
    return len(value) if isinstance(value, dict | list) else 0
