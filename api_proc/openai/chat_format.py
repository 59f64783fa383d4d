"""How the output of a chat request reads: its format travels inside shapes, and makes the parser of each choice.

`/v1/chat/completions`, `/v1/messages` and `/v1/responses` share all of it; they differ in how pieces are written.
"""

from collections.abc import Callable, Sequence

import msgspec

from api_proc.openai.tools import ToolUse
from api_proc.parsing.pieces import Content, OutputParser, Piece
from api_proc.server.errors import unsupported
from api_proc.server.rendering import Prompted, Shape
from api_proc.server.service import Service


class ChatFormat(msgspec.Struct, frozen=True):
    """What is to be found in the output of one request.

    `tool_parser` and `reasoning_parser` are names of `api_proc.parsing`; "" if no tools are offered, or if the model
    does not think. `tools` is the JSON of the tools that are offered. With `is_named` the client has named the function
    to call, and with `is_single` it takes one call at most.
    """

    tool_parser: str = ""
    reasoning_parser: str = ""
    tools: bytes = b"[]"
    is_named: bool = False
    is_single: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether all output is content, so that no parser is needed."""
        return not (self.tool_parser or self.reasoning_parser)

    @property
    def needs_prompt(self) -> bool:
        """Whether parsers need the prompt's text, at whose end thinking may be open: `is_echoed` of the shape."""
        return bool(self.reasoning_parser)


def format_of(service: Service, use: ToolUse | None) -> ChatFormat:
    """Return how the output of a request reads; raises RequestError 400 for tools that the model's format lacks."""
    if use is not None:
        raise unsupported("tools")
    return ChatFormat()


MakeShape = Callable[[Service, ChatFormat], Shape]
"""Makes what writes the response to a chat request that has been checked. A shape keeps the format as one of its
fields, and its renderer reads each choice with a parser of `parsers_of`."""


def parsers_of(form: ChatFormat, prompts: Sequence[Prompted], choices_each: int) -> list[OutputParser]:
    """Return a parser for each choice of a response, in their order.

    A parser is fed the text of its choice, in pieces of any size, by `push`, and at the end once by `finish`; what it
    returns is written in that order. The joined pieces are a function of the joined text.
    """
    return [PlainText() for _ in prompts for _ in range(choices_each)]


class PlainText:
    """Implements OutputParser for output that is content alone."""

    def push(self, text: str) -> list[Piece]:
        """Return the text as it is."""
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        """Return nothing: no text is held back."""
        return []
