"""How the output of a chat request reads: its format travels inside shapes, and makes the parser of each choice.

`/v1/chat/completions`, `/v1/messages` and `/v1/responses` share all of it; they differ in how pieces are written.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from api_proc.openai.tools import ToolUse
from api_proc.parsing.families import Formats, detect, reasoning_format, tool_format
from api_proc.parsing.pieces import OutputParser
from api_proc.parsing.tools import Tool
from api_proc.server.rendering import Prompted, Shape
from api_proc.server.service import Service
from quartet.wire.config import Config
from quartet.wire.errors import RequestError
from quartet.wire.frames import Marker
from quartet.wire.ids import Rid


class ChatFormat(msgspec.Struct, frozen=True):
    """What is to be found in the output of one request.

    `tool_parser` and `reasoning_parser` are names of formats in `api_proc.parsing.families`; "" if no tools are
    offered, or if the model does not think. `tools` has name, parameters and strictness of those that may be called.
    With `is_named` the client has named the function to call, and with `is_single` it takes one call at most.
    With `is_continued` the output goes on with the last message of the prompt.
    """

    tool_parser: str = ""
    reasoning_parser: str = ""
    tools: tuple[tuple[str, dict[str, Any], bool], ...] = ()
    is_named: bool = False
    is_single: bool = False
    is_continued: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether all output is content, so that no parser is needed."""
        return not (self.tool_parser or self.reasoning_parser)

    @property
    def needs_prompt(self) -> bool:
        """Whether parsers need the prompt's text, at whose end thinking may be open: `is_echoed` of the shape."""
        return bool(self.reasoning_parser)

    @property
    def offered(self) -> list[Tool]:
        """The tools that may be called."""
        return [Tool(*tool) for tool in self.tools]

    @property
    def formats(self) -> Formats:
        """The formats by these names."""
        reasoning = reasoning_format(self.reasoning_parser) if self.reasoning_parser else None
        return Formats(reasoning, tool_format(self.tool_parser) if self.tool_parser else None)

    @property
    def markers(self) -> tuple[Marker, ...]:
        """What the parsers look for in the text, and the detokenizer therefore has to show."""
        return tuple(map(Marker, self.formats.markers))


MakeShape = Callable[[Service, ChatFormat], Shape]
"""Makes what writes the response to a chat request that has been checked. A shape keeps the format as one of its
fields, and its renderer reads each choice with a parser of `parsers_of`."""


def format_of(config: Config, use: ToolUse | None, is_continued: bool = False) -> ChatFormat:
    """Return how the output of a request reads; raises RequestError 400 if the model's calls cannot be read."""
    formats = model_formats(config)
    reasoning = formats.reasoning.name if formats.reasoning else ""
    if use is None:
        return ChatFormat(reasoning_parser=reasoning, is_continued=is_continued)
    if formats.tools is None:
        problem = "the form in which this model calls tools is not known"
        if config.server.tool_call_parser == "none":
            problem = "the server was started with --tool-call-parser none"
        message = f"tools are not supported here: {problem}; start it with the --tool-call-parser of the model"
        raise RequestError(400, "unsupported_parameter", message, "tools")
    tools = tuple((one.name, one.parameters or {}, bool(one.strict)) for one in use.callable)
    return ChatFormat(formats.tools.name, reasoning, tools, use.is_named, use.is_single, is_continued)


def model_formats(config: Config) -> Formats:
    """Return the formats of the model that is served."""
    server = config.server
    return _formats(config.require_model().chat_template, server.tool_call_parser, server.reasoning_parser)


def format_names(config: Config) -> dict[str, str]:
    """Return the settings of the parsers as they are in force, "none" for none."""
    formats = model_formats(config)
    return {
        "tool_call_parser": formats.tools.name if formats.tools else "none",
        "reasoning_parser": formats.reasoning.name if formats.reasoning else "none",
    }


@functools.lru_cache(maxsize=16)
def _formats(template: str | None, tools: str, reasoning: str) -> Formats:
    found = detect(template)
    if tools != "auto":
        found = found._replace(tools=None if tools == "none" else tool_format(tools))
    if reasoning != "auto":
        found = found._replace(reasoning=None if reasoning == "none" else reasoning_format(reasoning))
    return found


def parsers_of(form: ChatFormat, prompts: Sequence[Prompted], choices_each: int) -> list[OutputParser]:
    """Return a parser for each choice of a response, in their order.

    A parser is fed the text of its choice, in pieces of any size, by `push`, and at the end once by `finish`; what it
    returns is written in that order. The joined pieces are a function of the joined text.
    """
    formats, tools = form.formats, form.offered
    return [formats.parser(tools, _beginning(form, formats, one)) for one in prompts for _ in range(choices_each)]


def _beginning(form: ChatFormat, formats: Formats, prompt: Prompted) -> str:
    """Return text that ends as the prompt does, for a parser: a message that is continued may be in its thinking."""
    text, reasoning = prompt.prompt_text, formats.reasoning
    if form.is_continued and reasoning and text.rfind(reasoning.opening) > text.rfind(reasoning.closing):
        return reasoning.opening
    return text


class ThinkingTokens:
    """Counts the tokens of one choice up to the end of its thinking, if that is a token of the model.

    Args:
        closing_id: the token that ends the thinking; -1 if none does, so that nothing can be counted.
    """

    def __init__(self, closing_id: int) -> None:
        self._closing_id = closing_id
        self._is_over = closing_id < 0
        self.count = 0

    def take(self, ids: list[int]) -> None:
        """Take the next ids of the output."""
        if not self._is_over:
            self._is_over = self._closing_id in ids
            self.count += ids.index(self._closing_id) + 1 if self._is_over else len(ids)


def thinking_tokens(form: ChatFormat, prompts: Sequence[Prompted], choices_each: int) -> Iterator[ThinkingTokens]:
    """Yield the counter of each choice; what it counts is thinking only if the parser finds any in the choice."""
    reasoning = form.formats.reasoning
    for one in prompts:
        ids = {marker.text: marker.id for marker in one.encoded.params.markers}
        for _ in range(choices_each):
            yield ThinkingTokens(ids.get(reasoning.closing, -1) if reasoning else -1)


def call_id(form: ChatFormat, rid: Rid, choice: int, call: int, prefix: str = "call_") -> str:
    """Return the id of a call. It follows from the response's, so a stream that resumes repeats it.

    It comes back with the call's result, and Mistral's chat templates take ids of nine characters alone.
    """
    digest = hashlib.blake2b(b"%b:%d:%d" % (rid, choice, call)).hexdigest()
    return digest[:9] if form.tool_parser.startswith("mistral") else prefix + digest[:24]
