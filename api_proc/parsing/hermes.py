"""Calls of Hermes, Qwen2.5 and Qwen3: a JSON object between `<tool_call>` and `</tool_call>`."""

import re
from collections.abc import Sequence

from api_proc.parsing.call_reader import Status
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.json_call import JsonCall
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.tools import Tool, names_of

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
_BRACES = re.compile(r"[ \t\r\n}]*")


def hermes(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    return CallsInText(names_of(tools), _HermesCall, (OPENING,))


class _HermesCall:
    """A CallReader. A brace too few or too many before the closing mark, or no closing mark, makes no difference."""

    def __init__(self, writer: PieceWriter, opening: str) -> None:
        self.status = Status.READING
        self._call = JsonCall(writer, len(opening), (CLOSING,))

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        used = 0
        if self._call.status is Status.READING:
            used = self._call.read(text, is_end)
            if not self._call.is_started or self._call.status is Status.READING:
                self.status = self._call.status
                return used
        braces = _BRACES.match(text, used)
        assert braces is not None
        rest = braces.end()
        if text.startswith(CLOSING, rest):
            self.status = Status.DONE
            return rest + len(CLOSING)
        if CLOSING.startswith(text[rest:]):
            self.status = Status.DONE if is_end else Status.READING
            return len(text) if is_end else used
        self.status = Status.BROKEN
        return used
