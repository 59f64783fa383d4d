"""Writes outputs that a grammar of calls allows, at random, and tells which outputs it allows.

The tokens are bytes, and the marks of all formats as special tokens.
"""

import random
from functools import cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from api_proc.parsing.families import TOOL_FORMATS, Formats, tool_format
from api_proc.parsing.tool_grammar import tool_grammar
from api_proc.parsing.tools import Tool
from quartet.wire.frames import Grammar
from tests.golden.real_tokenizers import byte_characters
from tokenizer_proc.grammars import GrammarCompiler
from tokenizer_proc.thinking import Thinking

NAMES = [each.name for each in TOOL_FORMATS]
EOS = "<eos>"
ENDING = ("\n</parameter>\n", "</arg_value>\n")
"""Written at random: single bytes would not come to it."""
SPECIAL = (
    EOS,
    *dict.fromkeys(
        text
        for each in TOOL_FORMATS
        for text in (*each.special, *(("<tool_call>", "</tool_call>") if each.name == "hermes" else ()))
    ),
)
TOOLS = (
    Tool(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "near": {"type": ["number", "null"]},
                "tags": {"type": "array", "items": {"enum": ["a", 'b "c"']}},
                "place": {
                    "type": "object",
                    "properties": {"lat": {"type": "number"}, "name": {"type": "string"}},
                    "required": ["lat"],
                    "additionalProperties": False,
                },
                "unit": {"enum": ["C", "F", 1]},
                "point": {"$ref": "#/$defs/point"},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"point": {"type": "array", "items": {"type": "integer"}}},
        },
        is_strict=True,
    ),
    Tool("stop", {"type": "object", "properties": {}, "additionalProperties": False}, is_strict=True),
)


@cache
def tokenizer() -> Tokenizer:
    characters = byte_characters()
    made = Tokenizer(models.BPE(vocab={characters[byte]: byte for byte in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return made


@cache
def masks() -> LLTokenizer:
    eos = tokenizer().token_to_id(EOS)
    return LLTokenizer(tokenizer().to_str(), n_vocab=tokenizer().get_vocab_size(), eos_token=[eos])


def compiled(grammar: Grammar, has_special: bool = True) -> str:
    special = {text: tokenizer().token_to_id(text) for text in SPECIAL} if has_special else {}
    return GrammarCompiler(masks(), special).compile(grammar, Thinking.CLOSED)


class Walk:
    """Writes one output that a grammar allows, sooner or later to its end."""

    def __init__(self, source: str, generator: random.Random, likely: tuple[str, ...] = ENDING) -> None:
        self._matcher = LLMatcher(masks(), source)
        self._generator = generator
        self._likely = [tokenizer().encode(each, add_special_tokens=False).ids for each in likely]
        self._ending: list[int] = []
        self._mask = allocate_token_bitmask(1, masks().vocab_size)

    def text(self) -> str:
        ids: list[int] = []
        while not self._matcher.is_stopped():
            allowed = self._allowed()
            eos = tokenizer().token_to_id(EOS)
            if eos in allowed and (len(allowed) == 1 or self._generator.random() < 0.3 + len(ids) / 500):
                break
            token = self._choice([each for each in allowed if each != eos], len(ids))
            assert self._matcher.consume_token(token), self._matcher.get_error()
            ids.append(token)
        assert self._matcher.is_accepting()
        return str(tokenizer().decode(ids, skip_special_tokens=False))

    def _allowed(self) -> list[int]:
        fill_next_token_bitmask(self._matcher, self._mask)
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return [int(each) for each in np.flatnonzero(bits)]

    def _choice(self, allowed: list[int], length: int) -> int:
        if not self._ending and self._generator.random() < 0.15:
            self._ending = list(self._generator.choice(self._likely))
        if self._ending and self._ending[0] in allowed:
            return self._ending.pop(0)
        self._ending = []
        special = [each for each in allowed if each >= 256]
        if special and self._generator.random() < 0.5:
            return self._generator.choice(special)
        closing = [each for each in allowed if each < 256 and chr(each) in '"]})']
        if closing and self._generator.random() < 0.2 + length / 300:
            return self._generator.choice(closing)
        printable = [each for each in allowed if 32 <= each < 127]
        return self._generator.choice(printable if printable and self._generator.random() < 0.9 else allowed)


def grammar_of(name: str, must_call: bool, is_single: bool = False, tools: tuple[Tool, ...] = TOOLS) -> Grammar:
    grammar = tool_grammar(Formats(None, tool_format(name)), tools, must_call, is_single)
    assert grammar is not None
    return grammar


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Return whether a value matches as much of JSON Schema as TOOLS use."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "enum" in schema:
        return value in schema["enum"]
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array"}
    kind = kinds.get(type(value), "object")
    if kind not in types and not (kind == "integer" and "number" in types):
        return False
    if kind == "array":
        return all(fits(each, schema["items"], root) for each in value)
    if kind != "object":
        return True
    properties = schema["properties"]
    return set(schema.get("required", [])) <= value.keys() <= properties.keys() and all(
        fits(each, properties[key], root) for key, each in value.items()
    )


def accepts(source: str, text: str) -> bool:
    matcher = LLMatcher(masks(), source)
    ids = tokenizer().encode(text, add_special_tokens=False).ids
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())
