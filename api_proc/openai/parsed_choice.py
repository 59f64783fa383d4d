"""One choice of a response that is parsed, as every API reads it: pieces, and the tokens of its thinking."""

from collections.abc import Sequence

from api_proc.openai.chat_format import ChatFormat, ThinkingTokens, parsers_of, thinking_tokens
from api_proc.parsing.pieces import CallArguments, CallStart, OutputParser, Piece, Reasoning
from api_proc.server.rendering import Prompted
from quartet.wire.frames import TextLogprobs


class ParsedChoice:
    """One choice: its parser, the tokens of its thinking, and what a stream has shown of it.

    With `is_single` the client takes one call at most. `waiting` are entries that no event has carried yet.
    """

    def __init__(self, parser: OutputParser, thinking: ThinkingTokens, is_single: bool) -> None:
        self.parser = parser
        self.thinking = thinking
        self.calls = 0
        self.waiting: list[TextLogprobs] = []
        self._is_single = is_single
        self._has_reasoning = False

    @property
    def reasoning_tokens(self) -> int:
        """The tokens of the thinking; 0 if the parser has found none."""
        return self.thinking.count if self._has_reasoning else 0

    def push(self, text: str) -> list[Piece]:
        """Return what is certain of the next text."""
        return self._taken(self.parser.push(text))

    def finish(self) -> list[Piece]:
        """Return what was held back."""
        return self._taken(self.parser.finish())

    def _taken(self, pieces: list[Piece]) -> list[Piece]:
        """Return the pieces that the client gets: without the second and later calls if it takes one at most."""
        for piece in pieces:
            if isinstance(piece, Reasoning):
                self._has_reasoning = True
        if not self._is_single:
            return pieces
        return [piece for piece in pieces if not (isinstance(piece, CallStart | CallArguments) and piece.call)]


def parsed_choices(form: ChatFormat, prompts: Sequence[Prompted], choices_each: int) -> list[ParsedChoice]:
    """Return the choices of a response, in their order, before any output."""
    parsers, thinking = parsers_of(form, prompts, choices_each), thinking_tokens(form, prompts, choices_each)
    return [ParsedChoice(parser, tokens, form.is_single) for parser, tokens in zip(parsers, thinking, strict=True)]
