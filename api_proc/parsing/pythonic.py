"""Calls of Llama 3.2 and 4 as a Python list: `[f(a=1, b="x"), g()]`, with literals for arguments.

The list may stand anywhere; it is one from its first keyword, or closing bracket, on. Arguments are turned into JSON.
What follows a mistake is content; the call that it stands in stays as it has been given out.
"""

import re
from collections.abc import Sequence

from api_proc.parsing.call_reader import Status, read_by_steps
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.literals import PYTHON, LiteralReader, quoted
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.tools import Tool, names_of

OPENING = "["
_WORD = r"[^\W\d][\w-]{0,255}"
_NAME = re.compile(rf"\s{{0,64}}([\w.-]{{1,256}})\s?\(\s{{0,64}}(?=\)|{_WORD}\s?=)")
_NAME_BEGUN = re.compile(rf"\s{{0,64}}(?:([\w.-]{{1,256}})\s?(?:\(\s{{0,64}}(?:{_WORD}\s?)?)?)?\Z")
_KEYWORD = re.compile(rf"({_WORD})\s?=\s?(?=[^\s=])")
_KEYWORD_BEGUN = re.compile(rf"(?:{_WORD}\s?(?:=\s?)?)?\Z")


def pythonic(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    return CallsInText(names_of(tools), lambda writer, opening: CallList(writer, len(opening)), (OPENING,))


class CallList:
    """A CallReader of calls that commas separate.

    Args:
        start: where the first name stands in the text of the first read.
        closing: what ends the list.
        needs_commas: whether white space alone does not separate calls.
    """

    def __init__(self, writer: PieceWriter, start: int, closing: str = "]", needs_commas: bool = True) -> None:
        self.status = Status.READING
        self._writer = writer
        self.at = start
        self._closing = closing
        self._needs_commas = needs_commas
        self._call: PythonCall | None = None

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        used = 0
        while self.status is Status.READING:
            if self._call is None:
                self._call = PythonCall(self._writer, self.at)
            if self._call.status is Status.READING:
                used += self._call.read(text[used:], is_end)
            if self._call.status is not Status.DONE:
                self.status = self._call.status
                return used
            start = after_space(text, used)
            if text.startswith(self._closing, start):
                self.status = Status.DONE
                return start + len(self._closing)
            if self._closing.startswith(text[start:]):
                self.status = Status.DONE if is_end else Status.READING
                return len(text) if is_end else used
            has_comma = text[start] == ","
            if self._needs_commas and not has_comma:
                self.status = Status.BROKEN
                return used
            self._call, self.at = None, start + has_comma - used
        return used


class PythonCall:
    """A CallReader of one call: a name and keywords in brackets."""

    def __init__(self, writer: PieceWriter, start: int) -> None:
        self.status = Status.READING
        self._writer = writer
        self.at = start
        self.is_started = False
        self._needs_comma = False
        self._separator = ""
        self._literal: LiteralReader | None = None

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        return read_by_steps(self, text, is_end)

    def step(self, text: str, is_end: bool) -> bool:
        """See SteppedReader."""
        if not self.is_started:
            return self._name(text)
        if self._literal is not None:
            return self._value(text, is_end)
        return self._keyword(text)

    def _name(self, text: str) -> bool:
        name = _NAME.match(text, self.at)
        begun = _NAME_BEGUN.match(text, self.at) if name is None else None
        if name is None or name[1] not in self._writer.names:
            self.status = Status.READING if begun else Status.BROKEN
            return False
        self._writer.start(name[1])
        self._writer.arguments("{")
        self.is_started = True
        self.at = name.end()
        return True

    def _keyword(self, text: str) -> bool:
        start = after_space(text, self.at)
        if text.startswith(")", start):
            self._writer.arguments("}")
            self.at = start + 1
            self.status = Status.DONE
            return False
        if self._needs_comma:
            return self._comma(text, start)
        keyword = _KEYWORD.match(text, start)
        if keyword is None:
            self.status = Status.READING if _KEYWORD_BEGUN.match(text, start) else Status.BROKEN
            return False
        self._writer.arguments(f'{self._separator}"{quoted(keyword[1])}": ')
        self._separator = ", "
        self._literal = LiteralReader(PYTHON)
        self.at = keyword.end()
        return True

    def _comma(self, text: str, at: int) -> bool:
        if not text.startswith(",", at):
            self.status = Status.BROKEN if at < len(text) else Status.READING
            return False
        self._needs_comma = False
        self.at = at + 1
        return True

    def _value(self, text: str, is_end: bool) -> bool:
        assert self._literal is not None
        self.at = self._literal.read(text, self.at, is_end)
        self._writer.arguments(self._literal.take())
        if self._literal.is_broken:
            self.status = Status.BROKEN
        if not self._literal.is_done:
            return False
        self._literal = None
        self._needs_comma = True
        return True
