"""Calls as JSON: one object, or a list of them."""

from api_proc.parsing.call_reader import Status
from api_proc.parsing.json_call import JsonCall
from api_proc.parsing.json_scanner import after_space
from api_proc.parsing.piece_writer import PieceWriter


class JsonCalls:
    """A CallReader.

    Args:
        start: where the object or the list begins in the text of the first read.
        closings: marks that end a call whose arguments are no JSON.
    """

    def __init__(self, writer: PieceWriter, start: int, closings: tuple[str, ...] = ()) -> None:
        self.status = Status.READING
        self._writer = writer
        self._start = start
        self._closings = closings
        self._call: JsonCall | None = None
        self._is_list = False

    def read(self, text: str, is_end: bool) -> int:
        """See CallReader."""
        if self._call is None:
            self._is_list = text[self._start] == "["
            self._call = JsonCall(self._writer, self._start + self._is_list, self._closings)
        used = 0
        while self.status is Status.READING:
            if self._call.status is Status.READING:
                used += self._call.read(text[used:], is_end)
            if self._call.status is not Status.DONE or not self._is_list:
                self.status = self._call.status
                return used
            start = after_space(text, used)
            if start == len(text):
                self.status = Status.DONE if is_end else Status.READING
                return start if is_end else used
            if text[start] == "]":
                self.status = Status.DONE
                return start + 1
            if text[start] != ",":
                self.status = Status.BROKEN
                return used
            self._call = JsonCall(self._writer, start + 1 - used, self._closings)
        return used
