"""Calls of Mistral's models, in both forms.

The older: `[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}, ...]`. The newer, once for every call:
`[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}`, with or without the id and `[ARGS]`. The ids are dropped.
"""

import re
from collections.abc import Callable, Sequence

from api_proc.parsing.argument_stream import ArgumentStream
from api_proc.parsing.call_reader import CallReader, Status
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.json_calls import JsonCalls
from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.tools import Tool, names_of

OPENING = "[TOOL_CALLS]"
_NAMED = re.compile(r"([^\s\[\]{}]{1,256})\s{0,8}(?:\[CALL_ID\][^\[\]{}]{0,256})?(?:\[ARGS\])?\s{0,8}(?=\{)")
_NAME_BEGUN = re.compile(
    r"[^\s\[\]{}]{0,256}\s{0,8}(?:\[[A-Z_]{0,7}(?:\][^\[\]{}]{0,256}(?:\[[A-Z_]{0,7}(?:\]\s{0,8})?)?)?)?\Z"
)


def mistral(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    return CallsInText(names_of(tools), _MistralCalls, (OPENING,))


class _MistralCalls:
    """A CallReader of what follows one opening: its first characters show the form."""

    def __init__(self, writer: PieceWriter, opening: str) -> None:
        self.status = Status.READING
        self._writer = writer
        self._reader: CallReader | None = None

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        if self._reader is None:
            start = after_space(text, len(OPENING))
            if start == len(text):
                self.status = Status.BROKEN if is_end else Status.READING
                return 0
            make: Callable[[PieceWriter, int], CallReader] = JsonCalls if text[start] in "[{" else _NamedCall
            self._reader = make(self._writer, start)
        used = self._reader.read(text, is_end)
        self.status = self._reader.status
        return used


class _NamedCall:
    """A CallReader of a name and arguments."""

    def __init__(self, writer: PieceWriter, start: int) -> None:
        self.status = Status.READING
        self._writer = writer
        self._start = start
        self._arguments: ArgumentStream | None = None

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        at = 0
        if self._arguments is None:
            named = _NAMED.match(text, self._start)
            if named is None or named[1] not in self._writer.names:
                is_possible = named is None and not is_end and _NAME_BEGUN.match(text, self._start)
                self.status = Status.READING if is_possible else Status.BROKEN
                return 0
            self._writer.start(named[1])
            self._arguments = ArgumentStream(self._writer, (OPENING,))
            at = named.end()
        end = self._arguments.read(text, at, is_end)
        self.status = Status.DONE if self._arguments.is_done else Status.READING
        return end
