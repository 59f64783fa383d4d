"""What reads the calls of one format."""

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from api_proc.parsing.piece_writer import PieceWriter


class Status(Enum):
    """How far a reader is.

    READING needs more text. DONE: what follows is content, or another call. BROKEN: what is left is no call; if
    nothing has been used, no text of it has been.
    """

    READING = auto()
    DONE = auto()
    BROKEN = auto()


class CallReader(Protocol):
    """Reads the calls that one opening begins.

    It uses no text until a name is complete and the arguments have begun, so that text which turns out to be no call
    comes back whole. From then on arguments pass as they come; where they stop being what the format asks, they pass
    until the call's end, or the end of the output if the format has no end.
    """

    status: Status

    def read(self, text: str, is_end: bool) -> int:
        """Read on in `text`, which begins with the first character not used yet; return how many are used.

        With `is_end` no more text will come, and the status is not READING afterwards.
        """
        ...


MakeReader = Callable[[PieceWriter, str], CallReader]
"""Makes a reader of the text that begins with the given opening."""
