"""Calls of Gemma 4, `<|tool_call>call:f{city:<|"|>Paris<|"|>,days:3}<tool_call|>`, and of FunctionGemma.

Keys have no quotes; strings stand between marks of their own and have no escapes. Arguments are turned into JSON.
What follows a mistake is content.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from api_proc.parsing.call_reader import CallReader, Status
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.literals import Dialect, LiteralReader
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.tools import Tool, names_of

_NAME = re.compile(r"\s{0,8}call:([^\s{}<>]{1,256})\s{0,8}(?=\{)")
_NAME_BEGUN = re.compile(r"\s{0,8}(?:c(?:a(?:l(?:l(?::[^\s{}<>]{0,256}\s{0,8})?)?)?)?)?\Z")


class Marks(NamedTuple):
    """What stands around calls and around strings."""

    opening: str
    closing: str
    quote: str


GEMMA4 = Marks("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = Marks("<start_function_call>", "<end_function_call>", "<escape>")


def gemma4(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output of Gemma 4 with calls of `tools`."""
    return _parser(tools, GEMMA4)


def function_gemma(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output of FunctionGemma with calls of `tools`."""
    return _parser(tools, FUNCTION_GEMMA)


def _parser(tools: Sequence[Tool], marks: Marks) -> CallsInText:
    def reader(writer: PieceWriter, opening: str) -> CallReader:
        return _BracedCall(writer, marks)

    return CallsInText(names_of(tools), reader, (marks.opening,))


class _BracedCall:
    """A CallReader of one call. The closing mark may be missing."""

    def __init__(self, writer: PieceWriter, marks: Marks) -> None:
        self.status = Status.READING
        self._writer = writer
        self._marks = marks
        self._is_started = False
        self._literal = LiteralReader(Dialect((marks.quote,), has_escapes=False, has_bare_keys=True))

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        at = 0
        if not self._is_started:
            start = len(self._marks.opening)
            name = _NAME.match(text, start)
            if name is None or name[1] not in self._writer.names:
                is_possible = name is None and not is_end and _NAME_BEGUN.match(text, start)
                self.status = Status.READING if is_possible else Status.BROKEN
                return 0
            self._writer.start(name[1])
            self._is_started = True
            at = name.end()
        if not self._literal.is_done:
            at = self._literal.read(text, at, is_end)
            self._writer.arguments(self._literal.take())
            if not self._literal.is_done:
                self.status = Status.BROKEN if self._literal.is_broken or is_end else Status.READING
                return at
        return self._end(text, at, is_end)

    def _end(self, text: str, at: int, is_end: bool) -> int:
        after = after_space(text, at)
        if text.startswith(self._marks.closing, after):
            self.status = Status.DONE
            return after + len(self._marks.closing)
        is_possible = self._marks.closing.startswith(text[after:])
        self.status = Status.READING if is_possible and not is_end else Status.DONE
        return len(text) if is_possible and is_end else at
