"""Turns a client's grammar into one that llguidance compiles without looking anything up, and compiles it to see."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from quartet.checkpoint.grammar_tokenizer import grammar_limits, read_grammar_tokenizer
from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.checkpoint.tokenizer_loading import load_tokenizer
from quartet.wire.config import Config
from quartet.wire.frames import Grammar
from tokenizer_proc.grammar_bounds import GrammarError, check_bounds, read_choices
from tokenizer_proc.json_schema import read_schema
from tokenizer_proc.thinking import Thinking, lark, literal, symbols_of, text_to, thinking_lark

WHITESPACE = r"\n {0,20}| {1,2}"
"""Between the tokens of JSON: indentation or a space or two, so that a model cannot go on with whitespace for ever."""
MAX_REASON = 300

Part = dict[str, Any]
"""One of llguidance's named grammars."""


class LocalGrammars:
    """Compiles in this process; the tokenizer is loaded with the first grammar.

    Args:
        config: with the resolved model.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._compiler: GrammarCompiler | None = None

    def compile(self, grammar: Grammar, thinking: Thinking) -> str:
        """Return the source of the grammar of kind llguidance; raises GrammarError, ModelError."""
        if self._compiler is None:
            model = self._config.require_model()
            self._compiler = load_compiler(tokenizer_folder(self._config), model.vocab_size, model.eos_token_ids)
        return self._compiler.compile(grammar, thinking)


def load_compiler(folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> "GrammarCompiler":
    """Return the compiler for a model; raises ModelError for a tokenizer that llguidance cannot read."""
    tokenizer = load_tokenizer(folder)
    added = tokenizer.get_added_tokens_decoder()
    masks = read_grammar_tokenizer(tokenizer, vocab_size, eos_token_ids)
    # To llguidance every added token in angle brackets is special, whatever the tokenizer says of it.
    special = {token.content: index for index, token in added.items() if masks.is_special_token(index)}
    return GrammarCompiler(masks, special)


class GrammarCompiler:
    """Compiles for one model, in this process.

    Args:
        tokenizer: the model's, as llguidance reads it.
        special: the ids of the tokens that are special to it, by their text.
    """

    def __init__(self, tokenizer: LLTokenizer, special: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._special = special

    def compile(self, grammar: Grammar, thinking: Thinking) -> str:
        """Return the source of the grammar of kind llguidance; raises GrammarError if it cannot be used."""
        parts = self._parts(grammar)
        if thinking is not Thinking.CLOSED:
            parts.insert(0, {"name": "output", "lark_grammar": self._thinking(grammar, thinking)})
        source = json.dumps({"grammars": parts}, ensure_ascii=False)
        self._try(source)
        return source

    def _parts(self, grammar: Grammar) -> list[Part]:
        """Return the grammar that `constraint` names, and those that it refers to."""
        check_bounds(grammar)
        if grammar.alternative is None:
            return [{"name": "constraint", **self._constraint(grammar)}]
        check_bounds(grammar.alternative)
        return [
            {"name": "constraint", "lark_grammar": "start: @first | @second"},
            {"name": "first", **self._constraint(grammar)},
            {"name": "second", **self._constraint(grammar.alternative)},
        ]

    def _constraint(self, grammar: Grammar) -> Part:
        match grammar.kind:
            case "json_object" | "json_schema":
                schema = {"type": "object"} if grammar.kind == "json_object" else read_schema(grammar.source)
                return {"json_schema": {**schema, "x-guidance": _json_options(grammar)}}
            case "regex":
                text = json.loads(LLMatcher.grammar_from_regex(grammar.source))["grammars"][0]["lark_grammar"]
            case "choice":
                # A terminal is one lexeme, whatever the number of choices.
                text = "start: CHOICE\nCHOICE: " + " | ".join(map(literal, read_choices(grammar.source)))
            case "gbnf":
                text = _of_gbnf(grammar.source)
            case "lark":
                text = grammar.source
            case "tools":
                text = "\n".join([grammar.source, *self._marker_rules(grammar)])
            case _:
                raise GrammarError(f"there is no kind of grammar named {grammar.kind!r}")
        return {"lark_grammar": text}

    def _marker_rules(self, grammar: Grammar) -> Iterator[str]:
        for index, text in enumerate(grammar.markers):
            symbols, name = symbols_of(text, self._special), f"marker_{index}"
            yield f"{name}: {lark(symbols)}"
            if f"text_to_{name}" in grammar.source:
                yield from text_to(f"text_to_{name}", symbols)

    def _thinking(self, grammar: Grammar, thinking: Thinking) -> str:
        opening, closing = (symbols_of(text, self._special) for text in (grammar.opening, grammar.after))
        ends = set(self._tokenizer.eos_tokens)
        inside = sorted(index for index in self._special.values() if index not in ends)
        return thinking_lark(thinking, opening, closing, inside)

    def _try(self, source: str) -> None:
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=grammar_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        error = matcher.get_error()
        if error.startswith("panic"):
            raise GrammarError("llguidance cannot compile it")
        if error.startswith("NoExtension"):
            raise GrammarError("no output matches it")
        if error:
            raise GrammarError(_short(error))


def _json_options(grammar: Grammar) -> dict[str, Any]:
    if grammar.whitespace == "":
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": WHITESPACE if grammar.whitespace is None else grammar.whitespace}


def _of_gbnf(source: str) -> str:
    try:
        return gbnf_to_lark(source)
    except GbnfToLarkError as error:
        raise GrammarError(_short(str(error))) from None
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    except Exception as error:
        # What the converter makes of a malformed grammar is not limited to its own error.
        raise GrammarError(f"it is not valid GBNF ({type(error).__name__})") from None


def _short(message: str) -> str:
    """Return what llguidance says in one line, without what it lists beside the cause."""
    for addition in ("following special tokens are available", "<backtrace>", "<non-verbose"):
        message = message.partition(addition)[0]
    text = " ".join(message.split()).rstrip("; ")
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
