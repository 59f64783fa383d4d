"""The value of one argument as plain text up to a closing tag: a string, or JSON, as the tool's schema says."""

from api_proc.parsing.json_scanner import JsonScanner
from api_proc.parsing.literals import PYTHON, LiteralReader, quoted
from api_proc.parsing.marks import certain_end
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.schema_types import json_type

_STRING = "string"


class TypedValue:
    """Gives out the value as JSON: a string as it comes, anything else when it is complete.

    Where the schema allows a string and more, or says nothing, text that is JSON or a Python literal of another type is
    that, and a string otherwise. Where it allows no string, text that is neither is a string still.

    Args:
        types: that the schema allows; see property_types.
        closing: the tag after the value.
        has_lines: whether the value stands on lines of its own; a line end at either end is not part of it then.
    """

    def __init__(self, writer: PieceWriter, types: frozenset[str], closing: str, has_lines: bool) -> None:
        self.is_done = False
        self._writer = writer
        self._types = types
        self._closing = closing
        self._has_lines = has_lines
        self._is_begun = False

    def read(self, text: str, at: int) -> int:
        """Return how far the value is read from `at` on, with its closing tag when it is done."""
        closing = text.find(self._closing, at)
        if self._types == {_STRING}:
            return self._string(text, at, closing)
        if closing < 0:
            return at
        self._writer.arguments(self._as_json(self._without_lines(text[at:closing])))
        self.is_done = True
        return closing + len(self._closing)

    def _string(self, text: str, at: int, closing: int) -> int:
        if not self._is_begun:
            if at == len(text):
                return at
            self._writer.arguments('"')
            self._is_begun = True
            at += self._has_lines and text[at] == "\n"
        if closing >= 0:
            end = closing - (self._has_lines and closing > at and text[closing - 1] == "\n")
            self._writer.arguments(quoted(text[at:end]) + '"')
            self.is_done = True
            return closing + len(self._closing)
        marks = (self._closing, f"\n{self._closing}") if self._has_lines else (self._closing,)
        end = certain_end(text, marks, at)
        self._writer.arguments(quoted(text[at:end]))
        return end

    def _without_lines(self, text: str) -> str:
        return text.removeprefix("\n").removesuffix("\n") if self._has_lines else text

    def _as_json(self, text: str) -> str:
        written = _json_of(text.strip())
        name = _STRING if written is None else json_type(written)
        is_allowed = name in self._types or (name == "integer" and "number" in self._types)
        takes_string = not self._types or _STRING in self._types
        if written is None or (takes_string and (name == _STRING or (self._types and not is_allowed))):
            return f'"{quoted(text)}"'
        return written


def _json_of(text: str) -> str | None:
    """Return JSON, or a Python literal, as JSON; None for text that is neither."""
    scanner = JsonScanner()
    if scanner.scan(text, 0, True) == len(text) and scanner.is_done:
        return text
    reader = LiteralReader(PYTHON)
    if reader.read(text, 0, True) == len(text) and reader.is_done:
        return reader.take()
    return None
