"""Pieces of every kind for the tests of renderers, and a parser that gives them whatever the text."""

from api_proc.openai.chat_format import ThinkingTokens
from api_proc.openai.parsed_choice import ParsedChoice
from api_proc.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from quartet.wire.ids import Rid

END_OF_THINKING = 99

RID = Rid(b"\xab" * 16)
MIXED: list[Piece] = [
    Reasoning("Let me"),
    Reasoning(" think."),
    Content("I call "),
    Content("wörld\n"),
    CallStart(0, "get_weather"),
    CallArguments(0, '{"city": "Par'),
    CallArguments(0, 'is", "days": [1, 2]}'),
    CallStart(1, "stop"),
    CallArguments(1, "{}"),
    Content("Done."),
]


class ScriptedParser:
    """Gives the next piece for each text that is pushed, and the rest at the end."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = list(pieces)

    def push(self, text: str) -> list[Piece]:
        return [self._pieces.pop(0)] if self._pieces else []

    def finish(self) -> list[Piece]:
        return self._pieces


def choice_of(pieces: list[Piece], is_single: bool = False) -> ParsedChoice:
    """Return a choice whose parser gives these pieces."""
    return ParsedChoice(ScriptedParser(pieces), ThinkingTokens(END_OF_THINKING), is_single)
