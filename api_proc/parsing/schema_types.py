"""Which JSON types a schema allows, for formats that write values without quotes."""

from collections.abc import Mapping
from typing import Any

_NAMES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_MAX_DEPTH = 8


def property_types(parameters: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return the types that the argument `name` may have; none if the schema does not say."""
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return _types(schema, parameters, 0)


def json_type(text: str) -> str:
    """Return the type of a value that is written as JSON."""
    first = {'"': "string", "t": "boolean", "f": "boolean", "n": "null", "[": "array", "{": "object"}.get(text[0])
    return first or ("number" if any(character in text for character in ".eE") else "integer")


def schema_types(schema: Mapping[str, Any], root: Mapping[str, Any]) -> frozenset[str]:
    """Return the types that a schema within `root` allows; none if it does not say."""
    return _types(schema, root, 0)


def resolved(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema, or what it refers to within `root`; an empty one where there is none."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        if not isinstance(schema.get("$ref"), str):
            return schema
        schema = _referred(schema["$ref"], root)
    return {}


def _types(schema: object, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    if depth > _MAX_DEPTH:
        return frozenset()
    schema = resolved(schema, root)
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset([given])
    if isinstance(given, list):
        return frozenset(each for each in given if isinstance(each, str))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return frozenset(_NAMES.get(type(value), "string") for value in values)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            parts = [_types(each, root, depth + 1) for each in schema[key]]
            return frozenset().union(*parts) if all(parts) else frozenset()
    return frozenset()


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    place: object = root
    for part in reference.removeprefix("#").split("/")[1:]:
        place = place.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place if reference.startswith("#") else None
