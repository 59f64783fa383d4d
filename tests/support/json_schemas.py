"""Twenty JSON schemas, of the kinds that clients send. Nothing in them is unbounded, so that an output of them ends."""

from typing import Any

_WORD = {"type": "string", "pattern": "^[a-z]{1,8}$"}
_SHORT = {"type": "string", "maxLength": 20}
_ANSWER = {"type": "boolean"}

SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": {
        "type": "object",
        "properties": {"name": _SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "alive": _ANSWER},
        "required": ["name", "age", "alive"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "person": {
                "type": "object",
                "properties": {
                    "name": _WORD,
                    "home": {
                        "type": "object",
                        "properties": {"street": _WORD, "number": {"type": "integer", "minimum": 1, "maximum": 99}},
                        "required": ["street", "number"],
                    },
                },
                "required": ["name", "home"],
            },
        },
        "required": ["person"],
    },
    "enum": {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad", None, 7, ["x"], {"y": 1}]}, "unit": {"enum": ["C", "F"]}},
        "required": ["mood", "unit"],
    },
    "const": {
        "type": "object",
        "properties": {"kind": {"const": "point"}, "version": {"const": 2}, "empty": {"const": []}},
        "required": ["kind", "version", "empty"],
    },
    "pattern": {
        "type": "object",
        "properties": {
            "plate": {"type": "string", "pattern": r"^[A-Z]{2}-\d{3,4}$"},
            "code": {"type": "string", "pattern": "^(foo|ba[rz])+$", "maxLength": 12},
        },
        "required": ["plate", "code"],
    },
    "array": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 9}, "minItems": 2, "maxItems": 4},
    "matrix": {
        "type": "object",
        "properties": {
            "rows": {
                "type": "array",
                "items": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0, "maximum": 9},
                    "minItems": 2,
                    "maxItems": 2,
                },
                "minItems": 2,
                "maxItems": 2,
            },
        },
        "required": ["rows"],
    },
    "tuple": {
        "type": "array",
        "prefixItems": [_WORD, {"type": "integer", "minimum": 0, "maximum": 5}, _ANSWER],
        "items": False,
        "minItems": 3,
    },
    "bounds": {
        "type": "object",
        "properties": {
            "above": {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 14},
            "even": {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 20},
            "below": {"type": "integer", "minimum": -1000, "maximum": -997},
            "share": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 1},
        },
        "required": ["above", "even", "below", "share"],
    },
    "unicode": {
        "type": "object",
        "properties": {
            "größe": {"enum": ["klein", "größer", "漢字", "🦊\u200d"]},
            "naïve": {"type": "string", "pattern": "^[äöü漢字🦊]{1,5}$"},
        },
        "required": ["größe", "naïve"],
    },
    "definitions": {
        "$defs": {"place": {"type": "object", "properties": {"x": {"$ref": "#/$defs/digit"}}, "required": ["x"]},
                  "digit": {"type": "integer", "minimum": 0, "maximum": 9}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/place"}, "to": {"$ref": "#/$defs/place"}},
        "required": ["from", "to"],
    },
    "recursive": {
        "$defs": {
            "list": {
                "type": "object",
                "properties": {"value": {"enum": [1, 2]},
                               "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]}},
                "required": ["value", "next"],
            },
        },
        "$ref": "#/$defs/list",
    },
    "any_of": {
        "anyOf": [
            {"type": "object", "properties": {"error": _WORD}, "required": ["error"], "additionalProperties": False},
            {"type": "object", "properties": {"total": {"enum": [1, 2, 3]}}, "required": ["total"],
             "additionalProperties": False},
        ],
    },
    "one_of": {
        "type": "object",
        "properties": {
            "pet": {
                "oneOf": [
                    {"type": "object", "properties": {"is": {"const": "cat"}, "lives": {"enum": [7, 9]}},
                     "required": ["is", "lives"]},
                    {"type": "object", "properties": {"is": {"const": "dog"}, "barks": _ANSWER},
                     "required": ["is", "barks"]},
                ],
                "discriminator": {"propertyName": "is"},
            },
        },
        "required": ["pet"],
    },
    "all_of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}, "b": True}, "required": ["a"],
             "additionalProperties": False},
            {"type": "object", "properties": {"a": {"maximum": 6}, "b": _ANSWER}, "required": ["b"]},
        ],
    },
    "formats": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "id": {"type": "string", "format": "uuid"},
            "host": {"type": "string", "format": "ipv4"},
            "secret": {"type": "string", "format": "password", "maxLength": 6},
        },
        "required": ["day", "id", "host", "secret"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": _ANSWER, "b": {"enum": [1, 2]}, "c": _WORD},
        "required": ["b"],
        "additionalProperties": False,
    },
    "map": {
        "type": "object",
        "patternProperties": {"^[a-z]{1,6}$": {"type": "integer", "minimum": 0, "maximum": 9}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 3,
    },
    "nullable": {
        "type": "object",
        "properties": {
            "nick": {"type": ["string", "null"], "maxLength": 8},
            "size": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "null"}], "default": None},
        },
        "required": ["nick", "size"],
        "additionalProperties": False,
    },
    "function": {
        "title": "Call",
        "description": "what pydantic makes of a class",
        "type": "object",
        "properties": {
            "name": {"const": "get_weather", "title": "Name"},
            "arguments": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Paris", "Rome"], "description": "where"},
                    "days": {"type": "array", "items": {"enum": ["Mon", "Tue"]}, "maxItems": 2, "default": []},
                },
                "required": ["city", "days"],
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    },
}  # fmt: skip

EXAMPLES = {"recursive": '{"value": 1, "next": {"value": 2, "next": null}}'}
"""Where nothing but the model ends an output: a value that a prompt can show."""
