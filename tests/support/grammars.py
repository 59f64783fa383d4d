"""Grammars for tests, and whether an output matches one."""

import json
import re
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from quartet.checkpoint.grammar_tokenizer import read_grammar_tokenizer
from quartet.checkpoint.tokenizer_loading import load_tokenizer
from quartet.wire.frames import Grammar
from tests.golden.oracles import FOLDER

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["old", "new"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Matching:
    """A grammar of kind llguidance and the judgement of whole outputs."""

    grammar: Grammar
    pattern: str = ""

    def matches(self, text: str) -> bool:
        """Say whether the text is what the grammar describes: a person, or a match of the pattern."""
        if self.pattern:
            return re.fullmatch(self.pattern, text) is not None
        value = json.loads(text)
        are_tags = all(tag in ("old", "new") for tag in value["tags"]) and len(value["tags"]) <= 3
        return len(value["name"]) <= 8 and 0 <= value["age"] <= 120 and are_tags and len(value) == 3


def person(spaces: bool = True) -> Matching:
    """Return the grammar of a person; without `spaces` there is none between the parts of the JSON text."""
    overrides: Any = {} if spaces else {"whitespace_flexible": False}
    return Matching(Grammar("llguidance", LLMatcher.grammar_from_json_schema(PERSON, overrides=overrides)))


def regex(pattern: str = "[a-f]{3,9}(-[0-9]{2}){1,4}") -> Matching:
    """Return the grammar of a regular expression."""
    return Matching(Grammar("llguidance", LLMatcher.grammar_from_regex(pattern)), pattern)


def tiny_tokenizer(vocab_size: int = 512) -> LLTokenizer:
    """Return the tokenizer of the tiny models, as llguidance reads it."""
    return read_grammar_tokenizer(load_tokenizer(FOLDER / "models" / "qwen3"), vocab_size, (2,))
