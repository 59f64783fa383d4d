"""The arguments of a call as a grammar, for formats that do not write them as one JSON object.

What a schema says of one value is enforced as far as the format can show it: types, `enum` and `const` everywhere, and
all of it where the value is written as JSON. Of what it says of the object, `properties` and `required` are.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from api_proc.parsing.lark_source import TEXT, LarkSource, either, literal
from api_proc.parsing.schema_types import resolved, schema_types
from api_proc.parsing.tools import Tool

_STRING = "string"
_MAX_DEPTH = 6
_ALL_TYPES = (_STRING, "number", "boolean", "null", "array", "object")
_PYTHON = {"true": "True", "false": "False", "null": "None"}
_DEFINITIONS = ("$defs", "definitions")


class Property(NamedTuple):
    """One member of an object; `rule` is a name for its rules."""

    name: str
    schema: Mapping[str, Any]
    is_required: bool
    rule: str


def properties(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str) -> list[Property]:
    """Return the members of an object in the order of its schema; `prefix` begins the names of their rules."""
    given, required = schema.get("properties"), schema.get("required")
    names = required if isinstance(required, list) else []
    return [
        Property(name, resolved(each, root), name in names, f"{prefix}_{index}")
        for index, (name, each) in enumerate(given.items() if isinstance(given, Mapping) else ())
    ]


def tagged(lark: LarkSource, tool: Tool, prefix: str, beginning: str, ending: str) -> str:
    """Return each argument as TypedValue reads it: `beginning` with the key for `{}`, the value and `ending`."""
    parts = []
    for each in properties(tool.parameters, tool.parameters, prefix):
        parameter = f"{literal(beginning.format(each.name))} {_untyped(lark, each, tool, ending)}"
        parts.append(parameter if each.is_required else f"({parameter})?")
    return " ".join(parts)


def _untyped(lark: LarkSource, one: Property, tool: Tool, ending: str) -> str:
    """Return a value without quotes and what ends it."""
    types = schema_types(one.schema, tool.parameters)
    values = _values(one.schema)
    if values:
        written = [value if isinstance(value, str) else _dumped(value) for value in values]
        return f"{either(list(map(literal, written)))} {literal(ending)}"
    if types and _STRING not in types:
        return f"{_json(lark, one, tool)} {literal(ending)}"
    lark.rule("ENDED", f"{TEXT} & ~(TEXT {literal(ending.strip())} TEXT)")
    bounds = (
        "".join(f" & {bound}" for bound in _string_bounds(one.schema)) if tool.is_strict and types == {_STRING} else ""
    )
    return lark.rule(one.rule, f"(ENDED{bounds}) {literal(ending)}", "[lazy]")


def _string_bounds(schema: Mapping[str, Any]) -> list[str]:
    bounds = []
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if least or most:
        bounds.append(f"/(?s:.{{{least},{most}}})/")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        start = "" if pattern.startswith("^") else "(?s:.*)"
        end = "" if pattern.endswith("$") else "(?s:.*)"
        inside = re.sub(r"(?<!\\)/", r"\/", pattern.removeprefix("^").removesuffix("$"))
        bounds.append(f"/{start}(?:{inside}){end}/")
    return bounds


def keywords(lark: LarkSource, tool: Tool, prefix: str) -> str:
    """Return `a=1, b="x"`, with literals of Python."""
    items = [
        (f"{literal(f'{each.name}=')} {_python(lark, each, tool)}", each.is_required)
        for each in properties(tool.parameters, tool.parameters, prefix)
    ]
    return listed(lark, prefix, items, ", ")


def _python(lark: LarkSource, one: Property, tool: Tool) -> str:
    types = schema_types(one.schema, tool.parameters)
    words = {"boolean": '("True" | "False")', "null": '"None"'}
    if values := _values(one.schema):
        return either([literal(_PYTHON.get(_dumped(value), _dumped(value))) for value in values])
    if types and types <= words.keys():
        return either([words[name] for name in sorted(types)])
    return _json(lark, one, tool)


def braced(lark: LarkSource, tool: Tool, prefix: str, quote: str) -> str:
    """Return `{a:1,b:<|"|>x<|"|>}`, as Gemma 4 writes it, with `quote` around strings."""
    return _Braced(lark, tool, quote).value({**tool.parameters, "type": "object"}, prefix, 0)


class _Braced:
    """Values as Gemma 4 writes them."""

    def __init__(self, lark: LarkSource, tool: Tool, quote: str) -> None:
        self._lark = lark
        self._root = tool.parameters
        self._is_strict = tool.is_strict
        self._quote = quote
        self._string = lark.rule("braced_string", f"{lark.marker(quote)} {lark.text_to(quote)}")
        lark.rule("braced_value", "braced_string | braced_number | braced_word | braced_list | braced_object")
        lark.json("braced_number", {"type": "number"}, True)
        lark.rule("braced_word", '"true" | "false" | "null"')
        lark.rule("braced_list", '"[" (braced_value ("," braced_value)*)? "]"')
        lark.rule("braced_object", '"{" (braced_member ("," braced_member)*)? "}"')
        lark.rule("braced_member", '/[A-Za-z_][A-Za-z0-9_]*/ ":" braced_value')

    def value(self, schema: Mapping[str, Any], rule: str, depth: int) -> str:
        """Return a value of `schema`; `rule` is a name for its rules."""
        schema = resolved(schema, self._root)
        if values := _values(schema):
            return either([self._lark.text(self._written(value)) for value in values])
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and depth < _MAX_DEPTH:
                parts = [self.value(each, f"{rule}_{index}", depth + 1) for index, each in enumerate(schema[key])]
                return either(parts) if parts else "braced_value"
        types = schema_types(schema, self._root)
        if not types or depth >= _MAX_DEPTH:
            return "braced_value"
        return either([self._of_type(name, schema, f"{rule}_{name}", depth) for name in sorted(types)])

    def _of_type(self, name: str, schema: Mapping[str, Any], rule: str, depth: int) -> str:
        if name == "array":
            items = schema.get("items")
            item = self.value(items, rule, depth + 1) if isinstance(items, Mapping) else "braced_value"
            return f'"[" ({item} ("," {item})*)? "]"'
        if name == "object":
            members = properties(schema, self._root, rule)
            if not members:
                return '"{" "}"' if depth == 0 or schema.get("additionalProperties") is False else "braced_object"
            items = [
                (f"{literal(f'{each.name}:')} {self.value(each.schema, each.rule, depth + 1)}", each.is_required)
                for each in members
            ]
            return f'"{{" {listed(self._lark, rule, items, ",")} "}}"'
        if name in ("integer", "number"):
            return self._lark.json(rule, {**schema, "type": name}, self._is_strict)
        return {"boolean": '("true" | "false")', "null": '"null"', _STRING: self._string}.get(name, "braced_value")

    def _written(self, value: object) -> str:
        return f"{self._quote}{value}{self._quote}" if isinstance(value, str) else _dumped(value)


def listed(lark: LarkSource, prefix: str, items: Sequence[tuple[str, bool]], separator: str) -> str:
    """Return the items in their order, without any of those that are not required, and separators between them."""
    # head_N: items from N on, of which none has come yet; tail_N: some has.
    last = len(items)
    lark.rule(f"{prefix}_head_{last}", '""')
    lark.rule(f"{prefix}_tail_{last}", '""')
    for index, (item, is_required) in reversed(list(enumerate(items))):
        head, tail = f"{item} {prefix}_tail_{index + 1}", f"{literal(separator)} {item}"
        lark.rule(f"{prefix}_head_{index}", head if is_required else f"{head} | {prefix}_head_{index + 1}")
        optional = tail if is_required else f"({tail})?"
        lark.rule(f"{prefix}_tail_{index}", f"{optional} {prefix}_tail_{index + 1}")
    return f"{prefix}_head_0"


def _json(lark: LarkSource, one: Property, tool: Tool) -> str:
    """Return the rule for a value as JSON, with the definitions that its schema may refer to."""
    definitions = {name: tool.parameters[name] for name in _DEFINITIONS if name in tool.parameters}
    return lark.json(one.rule, {**definitions, **one.schema}, tool.is_strict)


def _values(schema: Mapping[str, Any]) -> list[Any]:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else []


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
