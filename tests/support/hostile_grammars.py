"""Grammars meant to use up time or memory: each is refused, or compiled within the bounds."""

import json
from typing import Any

from quartet.wire.frames import Grammar


def _schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def _doubling(name: str, levels: int) -> dict[str, Any]:
    """Return a schema whose references make it 2**levels large once they are followed."""
    definitions: dict[str, Any] = {"d0": {"type": "integer"}}
    for level in range(1, levels + 1):
        inner = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {name: [inner, inner]} if name != "properties" else {name: {"a": inner, "b": inner}}
    return {"$defs": definitions, "$ref": f"#/$defs/d{levels}"}


def _rules(levels: int) -> str:
    return "start: r0\n" + "".join(f"r{n}: r{n + 1} r{n + 1}\n" for n in range(levels)) + f'r{levels}: "x" | ""\n'


_NESTED = "a"
for _ in range(10):
    _NESTED = f"(?:{_NESTED}b?){{1,100}}"

HOSTILE: dict[str, Grammar] = {
    "nested_plus": Grammar("regex", "(a+)+b"),
    "nested_star": Grammar("regex", "(((((a*)*)*)*)*)*b"),
    "billion": Grammar("regex", "a{0,1000000000}"),
    "thousands_of_thousands": Grammar("regex", "((a{0,1000}){0,1000}){0,1000}"),
    "nested_counts": Grammar("regex", _NESTED),
    "states": Grammar("regex", "(a|b)*a(a|b){200}"),
    "categories": Grammar("regex", r"(\p{L}\p{N}?){1,4000}"),
    "alternations": Grammar("regex", "|".join(f"x{n}y" for n in range(600))),
    "stars_of_alternations": Grammar("regex", "(" + "|".join(f"x{n}.*y" for n in range(400)) + ")*"),
    "deep_regex": Grammar("regex", "(" * 2000 + "a" + ")" * 2000),
    "deep_schema": Grammar("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    "self": _schema({"$ref": "#"}),
    "cycle": _schema({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "cycle_of_all": _schema({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}},
                             "$ref": "#/$defs/a"}),
    "doubling_all": _schema(_doubling("allOf", 28)),
    "doubling_any": _schema(_doubling("anyOf", 28)),
    "doubling_one": _schema(_doubling("oneOf", 14)),
    "doubling_properties": _schema(_doubling("properties", 28)),
    "product": _schema({"allOf": [{"anyOf": [{"required": [f"p{n}{m}"]} for m in range(8)]} for n in range(8)]}),
    "patterns": _schema({"type": "string", "allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(40)]}),
    "multiples": _schema({"type": "integer", "allOf": [{"multipleOf": n} for n in (1009, 1013, 1019, 1021)]}),
    "multiple": _schema({"type": "integer", "multipleOf": 100000007}),
    "numbers": _schema({"type": "number", "minimum": -1e300, "maximum": 1e300, "multipleOf": 1e-300}),
    "enum": _schema({"enum": [f"{n:08}" * 1 for n in range(4900)]}),
    "optional": _schema({"properties": {f"p{n}": {"type": "string"} for n in range(1000)}}),
    "pattern_properties": _schema({"patternProperties": {f"^{n}.*x$": {} for n in range(1000)}}),
    "items": _schema({"type": "array", "items": {"type": "array", "minItems": 10**6}, "minItems": 10**6}),
    "lengths": _schema({"type": "string", "pattern": "^(a|b|ab)*$", "minLength": 10**6, "maxLength": 10**9}),
    "whitespace": Grammar("json_object", "", whitespace="( *)*( *)*x{0,100000}"),
    "ambiguous": Grammar("lark", 'start: a\na: a a | "x" | ""'),
    "very_ambiguous": Grammar("lark", 'start: a\na: a a a a a | "x" | "x" "x" | ""'),
    "doubling_rules": Grammar("lark", _rules(40)),
    "repeated_rule": Grammar("lark", 'start: a{1000000}\na: "x" | "y" a'),
    "repeated_repeats": Grammar("lark", 'start: a{1000}\na: b{1000}\nb: c{1000}\nc: "x" | ""'),
    "negations": Grammar("lark", "start: A\nA: " + " & ".join(f"~/(?s:.*)a.{{{n}}}b(?s:.*)/" for n in range(30))),
    "substrings": Grammar("lark", "start: A\nA: %regex " + json.dumps({"substring_chars": "ab" * 15000})),
    "deep_lark": Grammar("lark", "start: " + "(" * 10000 + '"a"' + ")" * 10000),
    "deep_json_in_lark": Grammar("lark", "start: %json " + '{"items":' * 5000 + "{}" + "}" * 5000),
    "many_rules": Grammar("lark", "start: r0\n" + "".join(f'r{n}: "x" r{n + 1}\n' for n in range(3000)) + 'r3000: "x"'),
    "deep_gbnf": Grammar("gbnf", "root ::= " + "(" * 10000 + '"a"' + ")" * 10000),
    "many_gbnf_rules": Grammar("gbnf", "root ::= r0\n" + "".join(f'r{n} ::= "x" r{n + 1}\n' for n in range(2500))
                               + 'r2500 ::= "x"\n'),
    "large": Grammar("lark", "start: " + "a" * 70000),
    "choices": Grammar("choice", json.dumps(["x" * (n % 50 + 1) for n in range(1000)])),
}  # fmt: skip
