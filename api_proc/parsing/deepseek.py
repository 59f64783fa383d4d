"""Calls of DeepSeek-V3.1, and of V3 and R1, which write a type before the name and a fence around the arguments.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>

    <｜tool▁call▁begin｜>function<｜tool▁sep｜>f
    ```json
    {}
    ```<｜tool▁call▁end｜>

Marks that close calls may be missing.
"""

import re
from collections.abc import Sequence

from api_proc.parsing.argument_stream import ArgumentStream
from api_proc.parsing.call_reader import Status
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.tools import Tool, names_of

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
MARKS = (CALLS, CALL, SEPARATOR, CALL_END, CALLS_END)
_HEAD = re.compile(
    rf"(?:{CALLS}\s{{0,8}})?{CALL}(?:function{SEPARATOR})?([^\s<>]{{1,256}})"
    rf"(?:{SEPARATOR}|\s{{1,2}}```json)\s{{0,8}}(?=\{{)"
)
_MAX_HEAD = 400
_HEAD_CHARACTERS = re.compile(rf"(?:{CALLS}\s{{0,8}})?{CALL}[^{{]{{0,320}}\Z")
_ENDS = ("```", CALL_END, CALLS_END)


def deepseek(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    return CallsInText(names_of(tools), _MarkedCall, (CALLS, CALL))


class _MarkedCall:
    """A CallReader of one call, with what opens and closes all of them."""

    def __init__(self, writer: PieceWriter, opening: str) -> None:
        self.status = Status.READING
        self._writer = writer
        self._arguments: ArgumentStream | None = None

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        at = 0
        if self._arguments is None:
            head = _HEAD.match(text)
            if head is None or head[1] not in self._writer.names:
                is_possible = head is None and not is_end and self._is_begun(text)
                self.status = Status.READING if is_possible else Status.BROKEN
                return 0
            self._writer.start(head[1])
            self._arguments = ArgumentStream(self._writer, (CALL_END, CALLS_END, CALL))
            at = head.end()
        if not self._arguments.is_done:
            at = self._arguments.read(text, at, is_end)
        return self._end(text, at, is_end) if self._arguments.is_done else at

    def _is_begun(self, text: str) -> bool:
        bare = text.removeprefix(CALLS).lstrip() if text.startswith(CALLS) else text
        return CALL.startswith(bare) or _HEAD_CHARACTERS.match(text) is not None

    def _end(self, text: str, at: int, is_end: bool) -> int:
        """Skip the marks that close the call and the list; they may come one by one."""
        rest = text[at:].lstrip()
        mark = next((mark for mark in _ENDS if rest.startswith(mark)), "")
        if mark and mark != CALLS_END:
            return self._end(text, len(text) - len(rest) + len(mark), is_end)
        if mark:
            self.status = Status.DONE
            return len(text) - len(rest) + len(mark)
        is_possible = any(mark.startswith(rest) for mark in _ENDS)
        self.status = Status.READING if is_possible and not is_end else Status.DONE
        return len(text) if is_possible and is_end else at
