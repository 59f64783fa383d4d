"""Calls of Gemma 3, which has no format of its own: in a fence, as Python or as JSON, or without one.

    ```tool_code
    f(city="Paris")
    ```

In the fence stand calls on lines, a list of them, or JSON as of Llama 3. A list may stand anywhere without a fence, and
JSON at the start of the output or after another call.
"""

from collections.abc import Sequence

from api_proc.parsing.call_reader import CallReader, Status
from api_proc.parsing.calls_in_text import CallsInText
from api_proc.parsing.json_call import JsonCall
from api_proc.parsing.json_calls import JsonCalls
from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.pythonic import CallList
from api_proc.parsing.tools import Tool, names_of

FENCES = ("```tool_code", "```tool_call", "```json", "```python")
FENCE_END = "```"


def gemma(tools: Sequence[Tool]) -> CallsInText:
    """Return the parser of one output with calls of `tools`."""
    return CallsInText(names_of(tools), _reader, (*FENCES, "["), ("{",))


def _reader(writer: PieceWriter, opening: str) -> CallReader:
    if opening == "{":
        return JsonCall(writer, 0)
    return CallList(writer, len(opening)) if opening == "[" else _FencedCalls(writer, opening)


class _FencedCalls:
    """A CallReader of a fence and what stands in it. The fence's end may be missing."""

    def __init__(self, writer: PieceWriter, opening: str) -> None:
        self.status = Status.READING
        self._writer = writer
        self._start = len(opening)
        self._calls: CallReader | None = None
        self._is_closed = False

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        used = 0
        if self._calls is None:
            start = after_space(text, self._start)
            # The character after a bracket tells a list of objects from one of calls.
            following = after_space(text, start + 1)
            if following >= len(text):
                self.status = Status.BROKEN if is_end else Status.READING
                return 0
            self._calls = self._inside(text[start] + text[following], start)
        if self._calls.status is Status.READING:
            used = self._calls.read(text, is_end)
        if self._calls.status is not Status.DONE or self._is_closed:
            self.status = self._calls.status
            return used
        end = after_space(text, used)
        if text.startswith(FENCE_END, end):
            self.status = Status.DONE
            return end + len(FENCE_END)
        is_possible = FENCE_END.startswith(text[end:])
        self.status = Status.READING if is_possible and not is_end else Status.DONE
        return len(text) if is_possible and is_end else used

    def _inside(self, beginning: str, start: int) -> CallReader:
        if beginning[0] == "{" or beginning == "[{":
            return JsonCalls(self._writer, start, (FENCE_END,))
        if beginning[0] == "[":
            return CallList(self._writer, start + 1)
        self._is_closed = True
        return CallList(self._writer, start, FENCE_END, needs_commas=False)
