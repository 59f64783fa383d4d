"""Gives out the arguments of a call, a JSON object, as they come."""

from api_proc.parsing.json_scanner import JsonScanner, without_cut_escape
from api_proc.parsing.marks import certain_end, find_first
from api_proc.parsing.piece_writer import PieceWriter


class ArgumentStream:
    """The arguments of the call that `writer` has begun.

    Args:
        closings: marks that end arguments that are no JSON; without them these end with the output.

    `is_done` says that what follows are no arguments, `is_broken` that they are no JSON.
    """

    def __init__(self, writer: PieceWriter, closings: tuple[str, ...] = ()) -> None:
        self.is_done = False
        self._writer = writer
        self._closings = closings
        self._scanner = JsonScanner()

    @property
    def is_broken(self) -> bool:
        """Whether the arguments are no JSON."""
        return self._scanner.is_broken

    def read(self, text: str, at: int, is_end: bool) -> int:
        """Give out what is certain from `at` on, and return its end. An escape that the output's end cuts is not."""
        end = at
        if not self._scanner.is_broken:
            end = self._scanner.scan(text, at, is_end)
            self.is_done = self._scanner.is_done
        if self._scanner.is_broken:
            end = self._end_of_broken(text, end, is_end)
        self._writer.arguments(text[at:end])
        if is_end and not self.is_done:
            self.is_done = True
            return len(text)
        return end

    def _end_of_broken(self, text: str, at: int, is_end: bool) -> int:
        closing, _ = find_first(text, self._closings, at)
        if closing >= 0 or is_end:
            self.is_done = True
            return closing if closing >= 0 else len(text)
        return at + len(without_cut_escape(text[at : certain_end(text, self._closings, at)]))
