"""Content with calls in it: finds where calls begin, and gives back as content what is no call.

White space directly before a call is dropped, and after the last one at the end of the output: templates insert it.
Of a longer run 64 characters are.
"""

import re
from collections.abc import Collection

from api_proc.parsing.call_reader import CallReader, MakeReader, Status
from api_proc.parsing.marks import certain_end, find_first
from api_proc.parsing.piece_writer import PieceWriter
from api_proc.parsing.pieces import Content, Piece

_SPACE = " \t\r\n"
_MAX_SPACE = 64
"""Of a longer run no more is held: a model that writes line ends for ever must not cost more with each."""


class CallsInText:
    """An OutputParser for formats in which a literal text begins a call.

    Args:
        names: of the tools that the request offers.
        make_reader: of the text from an opening on.
        openings: texts that may begin a call anywhere.
        first_openings: texts that may begin a call at the start of the output and after a call.
        separators: characters that may stand between calls, beside white space.
    """

    def __init__(
        self,
        names: Collection[str],
        make_reader: MakeReader,
        openings: tuple[str, ...],
        first_openings: tuple[str, ...] = (),
        separators: str = "",
    ) -> None:
        self._writer = PieceWriter(names)
        self._make_reader = make_reader
        self._openings = openings
        self._first_openings = first_openings
        self._separators = _SPACE + separators
        self._has_first = re.compile("[" + "".join(re.escape(opening[0]) for opening in openings) + "]").search
        self._reader: CallReader | None = None
        self._space = ""
        """What stands before the call that is being read; content if it is none."""
        self._held = ""
        self._seen = 0
        """No call begins in so many of the first held characters."""
        self._is_fresh = True
        """Whether there has been nothing but space since the start or the last call."""

    def push(self, text: str) -> list[Piece]:
        """Take the next text; return what it is certain to mean."""
        self._held += text
        if self._reader is None and not self._is_fresh and not self._has_first(self._held):
            # The common case: no call begins here.
            end = self._end_without_space(len(self._held))
            text, self._held, self._seen = self._held[:end], self._held[end:], 0
            return [Content(text)] if text else []
        return self._advance(False)

    def finish(self) -> list[Piece]:
        """The output has ended; return what was held back."""
        return self._advance(True)

    def _advance(self, is_end: bool) -> list[Piece]:
        while self._held and (self._call(is_end) if self._reader else self._text(is_end)):
            pass
        return self._writer.take()

    def _text(self, is_end: bool) -> bool:
        """Release text up to the next call; return whether one may begin there."""
        at, opening = self._next_opening()
        if at >= 0:
            end = self._end_without_space(at)
            self._release(end)
            self._space, self._held = self._held[: at - end], self._held[at - end :]
            self._reader = self._make_reader(self._writer, opening)
            return True
        end = len(self._held)
        if not is_end:
            end = self._end_without_space(certain_end(self._held, self._possible(), self._seen))
        elif self._is_between_calls() and end <= _MAX_SPACE and not self._held.strip(self._separators):
            self._held = ""
            return False
        self._release(end)
        return False

    def _next_opening(self) -> tuple[int, str]:
        if self._is_fresh and self._seen == 0:
            start = len(self._held) - len(self._held.lstrip(self._spaces()))
            for opening in self._first_openings if start <= _MAX_SPACE else ():
                if self._held.startswith(opening, start):
                    return start, opening
        return find_first(self._held, self._openings, self._seen)

    def _possible(self) -> tuple[str, ...]:
        return self._openings + self._first_openings if self._is_fresh else self._openings

    def _is_between_calls(self) -> bool:
        return self._is_fresh and self._writer.calls > 0

    def _spaces(self) -> str:
        return self._separators if self._is_between_calls() else _SPACE

    def _end_without_space(self, end: int) -> int:
        return max(len(self._held[:end].rstrip(self._spaces())), end - _MAX_SPACE)

    def _release(self, end: int) -> None:
        self._writer.content(self._held[:end])
        self._held = self._held[end:]
        self._seen = max(0, self._seen - end)
        self._is_fresh = self._is_fresh and end == 0

    def _call(self, is_end: bool) -> bool:
        """Read on in a call; return whether there may be more to do with the text that is left."""
        assert self._reader is not None
        used = self._reader.read(self._held, is_end)
        status = self._reader.status
        if used:
            self._space, self._held = "", self._held[used:]
        if status is Status.READING:
            return False
        self._reader = None
        self._is_fresh = status is Status.DONE
        self._seen = 0 if status is Status.DONE or used else len(self._space) + 1
        self._held, self._space = self._space + self._held, ""
        return True
