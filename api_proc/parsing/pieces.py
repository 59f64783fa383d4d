"""What parsers give: pieces of content, of reasoning and of tool calls, in the order of the text."""

from typing import NamedTuple, Protocol


class Content(NamedTuple):
    """Text for the user."""

    text: str


class Reasoning(NamedTuple):
    """Text of the model's thinking."""

    text: str


class CallStart(NamedTuple):
    """A call of a tool begins; calls are numbered from 0."""

    call: int
    name: str


class CallArguments(NamedTuple):
    """The next piece of a call's arguments, which are JSON when joined; no piece ends within an escape."""

    call: int
    text: str


Piece = Content | Reasoning | CallStart | CallArguments


class OutputParser(Protocol):
    """Reads the output of one choice."""

    def push(self, text: str) -> list[Piece]:
        """Take the next text; return what it is certain to mean."""
        ...

    def finish(self) -> list[Piece]:
        """The output has ended; return what was held back."""
        ...
