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


class SteppedReader(Protocol):
    """What a CallReader is made of by `read_by_steps`: `at` is how far it has got in the text."""

    status: Status
    at: int

    @property
    def is_started(self) -> bool:
        """Whether the call has begun, so that text is used."""
        ...

    def step(self, text: str, is_end: bool) -> bool:
        """Read the next part from `at` on; False if that needs more text, or the status is not READING any more."""
        ...


def read_by_steps(reader: SteppedReader, text: str, is_end: bool) -> int:
    """Implement CallReader.read by the steps of `reader`."""
    while reader.status is Status.READING and reader.step(text, is_end):
        pass
    if is_end and reader.status is Status.READING:
        reader.status = Status.BROKEN
    if not reader.is_started:
        return 0
    used, reader.at = reader.at, 0
    return used


MakeReader = Callable[[PieceWriter, str], CallReader]
"""Makes a reader of the text that begins with the given opening."""
