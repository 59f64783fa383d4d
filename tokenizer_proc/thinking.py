"""A grammar that begins after the model's thinking: whether thinking comes first, and how it is written in Lark.

The end of the rendered prompt decides. If the template has opened the thinking (`<think>\\n`), the output begins with
it; if the template has closed it (`<think>\\n\\n</think>\\n\\n`), there is none; else the model may open it itself.
"""

import enum
import re
from collections.abc import Mapping

import msgspec

from quartet.wire.frames import Grammar

TEXT = "/(?s:.*)/"
Symbols = list[int | str]
"""Text as the model writes it: ids of special tokens, and other text."""


class Thinking(enum.StrEnum):
    """Where the prompt ends."""

    OPEN = "open"
    """Within the thinking."""
    CLOSED = "closed"
    """After it, or the grammar allows none."""
    POSSIBLE = "possible"
    """Before the output, which may begin with the opening of the thinking; always with thinking if it has none."""


def thinking_at_end(prompt: str, grammar: Grammar, is_continued: bool = False) -> Thinking:
    """Return where `prompt`, rendered text, ends.

    `is_continued`: its last message is to be continued, and may contain thinking itself.
    """
    if not grammar.after:
        return Thinking.CLOSED
    opening, text = grammar.opening, prompt.rstrip()
    if is_continued:
        is_open = bool(opening) and prompt.rfind(opening) > prompt.rfind(grammar.after)
        return Thinking.OPEN if is_open else Thinking.CLOSED
    if text.endswith(grammar.after):
        return Thinking.CLOSED
    return Thinking.OPEN if opening and text.endswith(opening) else Thinking.POSSIBLE


def symbols_of(text: str, special: Mapping[str, int]) -> Symbols:
    """Return `text` cut at the `special` tokens, of which the longest is taken where several begin."""
    longest_first = sorted((name for name in special if name and name in text), key=len, reverse=True)
    if not longest_first:
        return [text] if text else []
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return [special.get(part, part) for part in parts if part]


def lark(symbols: Symbols) -> str:
    """Return a sequence of tokens and literals in llguidance's Lark."""
    return " ".join(_symbol(symbol) for symbol in symbols)


def text_to(name: str, symbols: Symbols) -> list[str]:
    """Return rules for which `name` is any text up to `symbols`, of which there is one at least, and these."""
    first, *rest = symbols
    if isinstance(first, str):
        return [f"{name}: {name}_first {lark(rest)}", f"{name}_first[lazy]: TEXT {literal(first)}"]
    return [f"{name}: TEXT {lark(symbols)}"]


def literal(text: str) -> str:
    """Return `text` as a literal of Lark."""
    return msgspec.json.encode(text).decode()


def thinking_lark(state: Thinking, opening: Symbols, closing: Symbols, special_ids: list[int]) -> str:
    """Return a Lark grammar whose start is the thinking and then `@constraint`.

    `closing` is not empty. `special_ids` are the tokens that thinking may contain if `closing` is several symbols, as
    in templates with channels.
    """
    lines = [f"TEXT: {TEXT}", "NEWLINES: /\\n{1,2}/"]
    if state is Thinking.POSSIBLE and opening:
        lines.append(f"start: ({lark(opening)} thinking NEWLINES?)? @constraint")
    else:
        lines.append("start: thinking NEWLINES? @constraint")
    first, *rest = closing
    if not isinstance(first, str) and rest and isinstance(rest[0], str):
        # Of the channels that the first token opens, only the one named so ends the thinking.
        others = ",".join(str(index) for index in special_ids if index != first)
        lines += [
            f"thinking: TEXT (<[{others}]> TEXT | <[{first}]> OTHER <[{others}]> TEXT)* {lark(closing)}",
            f"OTHER: TEXT & ~({literal(rest[0])} TEXT)",
        ]
    else:
        lines += text_to("thinking", closing)
    return "\n".join(lines) + "\n"


def _symbol(symbol: int | str) -> str:
    return literal(symbol) if isinstance(symbol, str) else f"<[{symbol}]>"
