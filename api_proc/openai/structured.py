"""What the output has to match: the fields of OpenAI, vLLM and SGLang -> at most one Grammar.

The tokenizer process checks what is in it; here it is only found which field asks, and for what.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from api_proc.openai.chat_messages import check_nesting
from api_proc.openai.schema import SamplingFields
from api_proc.server.errors import invalid, unsupported
from quartet.wire.errors import RequestError
from quartet.wire.frames import Grammar

NO_WHITESPACE = ""
_GBNF_RULE = re.compile(r"^[ \t]*[\w.-]+[ \t]*::=", re.MULTILINE)
"""Begins a rule in GBNF and other EBNF; Lark has no such operator."""

Reader = Callable[[str, Any], Grammar | None]


def constraint(fields: SamplingFields) -> Grammar | None:
    """Return what the output of a request has to match, if anything; raises RequestError 400 with the field at fault.

    Fields that are null, false or empty ask for nothing; two that ask are an error that names both.
    """
    found: list[Grammar] = []
    for name, read in _READERS.items():
        value = getattr(fields, name)
        if value in (None, False, "", [], {}):
            continue
        grammar = read(name, value)
        if grammar is not None:
            found.append(grammar)
    if len(found) > 1:
        names = f"{found[0].param} and {found[1].param}"
        raise invalid(found[1].param, f"the output can follow one grammar only, and this request has {names}")
    if not found:
        return None
    return _with_whitespace(found[0], "guided_whitespace_pattern", fields.guided_whitespace_pattern)


def check_end(fields: SamplingFields, grammar: Grammar | None) -> None:
    """Refuse fields that would move the end of an output that a grammar ends; raises RequestError 400."""
    if grammar is None:
        return
    for name in ("min_tokens", "ignore_eos"):
        if getattr(fields, name):
            raise invalid(name, f"{name} does not go with {grammar.param}: the grammar decides where the output ends")


def json_grammar(param: str, schema: Any) -> Grammar:
    """Return the grammar of a JSON schema, an object or its text; raises RequestError 400 naming `param`."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError):
            raise invalid(param, f"{param} must be a JSON schema, and is not valid JSON") from None
    if not isinstance(schema, dict | bool):
        raise invalid(param, f"{param} must be a JSON schema, an object")
    check_nesting(param, schema)
    return Grammar("json_schema", msgspec.json.encode(schema).decode(), param=param)


def _response_format(name: str, value: Any) -> Grammar | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_object", "", param=name)
    if kind == "structural_tag":
        message = f"{name}.type structural_tag is not supported yet"
        raise RequestError(400, "unsupported_parameter", message, f"{name}.type")
    if kind != "json_schema":
        raise invalid(f"{name}.type", f"{name}.type must be text, json_object or json_schema")
    wanted = value.get("json_schema")
    where = f"{name}.json_schema"
    if not isinstance(wanted, dict):
        raise invalid(where, f"{where} must be an object with a schema")
    for key, kind_of_value in (("name", str), ("description", str), ("strict", bool)):
        if not isinstance(wanted.get(key), kind_of_value | None):
            raise invalid(f"{where}.{key}", f"{where}.{key} must be a {kind_of_value.__name__}")
    # OpenAI takes a format without a schema as one that any JSON matches.
    schema = wanted.get("schema")
    return json_grammar(f"{where}.schema", {} if schema is None else schema)


def _regex(name: str, value: Any) -> Grammar:
    return Grammar("regex", _text(name, value), param=name)


def _grammar(name: str, value: Any) -> Grammar:
    return Grammar("gbnf" if _GBNF_RULE.search(_text(name, value)) else "lark", value, param=name)


def _choice(name: str, value: Any) -> Grammar:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise invalid(name, f"{name} must be a list of strings that are not empty")
    return Grammar("choice", msgspec.json.encode(value).decode(), param=name)


def _json_object(name: str, value: Any) -> Grammar:
    if value is not True:
        raise invalid(name, f"{name} must be true or false")
    return Grammar("json_object", "", param=name)


_STRUCTURED: dict[str, Reader] = {
    "json": json_grammar,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
}


def _structured_outputs(name: str, value: Any) -> Grammar | None:
    """Read vLLM's object, of which one member is a constraint and others are options of it."""
    if not isinstance(value, dict):
        raise invalid(name, f"{name} must be an object")
    given = {key: each for key, each in value.items() if each not in (None, False, "", [], {})}
    for key in ("structural_tag", "disable_additional_properties"):
        if key in given:
            raise unsupported(f"{name}.{key}")
    constraints = [key for key in given if key in _STRUCTURED]
    if len(constraints) != 1:
        raise invalid(name, f"{name} must have exactly one of {', '.join(_STRUCTURED)}")
    (key,) = constraints
    grammar = _STRUCTURED[key](f"{name}.{key}", given[key])
    assert grammar is not None
    if given.get("disable_any_whitespace"):
        return msgspec.structs.replace(grammar, whitespace=NO_WHITESPACE)
    return _with_whitespace(grammar, f"{name}.whitespace_pattern", given.get("whitespace_pattern"))


def _with_whitespace(grammar: Grammar, name: str, pattern: Any) -> Grammar:
    if not pattern:
        return grammar
    if grammar.kind not in ("json_schema", "json_object"):
        raise invalid(name, f"{name} is for JSON, and {grammar.param} is none")
    return msgspec.structs.replace(grammar, whitespace=_text(name, pattern))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"{name} must be a string")
    return value


_READERS: dict[str, Reader] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "json_schema": json_grammar,
    "regex": _regex,
    "ebnf": _grammar,
    "grammar": _grammar,
    "choice": _choice,
    "guided_json": json_grammar,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
}
