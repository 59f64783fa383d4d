"""The interface between output and the JSON of a route: one renderer per response.

Renderers return complete SSE events (`data: ...` and the blank line) or whole JSON bodies, as bytes. They are on the
path of every token: everything that does not change is encoded once, when the response begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from api_proc.server.errors import error_body
from quartet.client.request import Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import Encoded, Finish, TextLogprobs
from quartet.wire.ids import Rid


@dataclass(slots=True)
class ChoiceOutput:
    """The output of one choice, gathered: all of it, or what a slow client has not been sent yet."""

    parts: list[str] = field(default_factory=list)
    logprobs: list[TextLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    ids: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.parts)

    def add(self, output: Output) -> None:
        """Append one increment."""
        self.parts.append(output.text)
        self.ids += output.ids
        if output.logprobs:
            self.logprobs.extend(output.logprobs)
        if output.finish is not None:
            self.finish = output.finish


class Renderer(Protocol):
    """Writes one response in the shape of its route. `usage` and `timings` are JSON; `usage` b"" leaves it out.

    `keep_alive` is written to a stream that is silent, `end_of_stream` after its last event.
    """

    keep_alive: ClassVar[bytes]
    end_of_stream: ClassVar[bytes]

    def first(self, choice: int) -> bytes:
        """Return the event that opens a choice, or nothing."""
        ...

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of new text."""
        ...

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the event that ends a choice."""
        ...

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return the event with no choices that carries the usage."""
        ...

    def error(self, error: RequestError) -> bytes:
        """Return the event of an error that ends the stream."""
        ...

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed."""
        ...


@runtime_checkable
class TakesIds(Protocol):
    """A renderer that shows token ids."""

    def take_ids(self, choice: int, ids: list[int]) -> None:
        """Take the ids of the output that is rendered next, if there is anything of it to render."""
        ...


class OpenAIEvents:
    """How OpenAI's streams stay alive, fail and end."""

    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    end_of_stream: ClassVar[bytes] = b"data: [DONE]\n\n"

    def error(self, error: RequestError) -> bytes:
        """Return the event of an error that ends the stream."""
        return b"data: " + error_body(error) + b"\n\n"


class Prompted(Protocol):
    """What a renderer is made from: each prompt of the response."""

    @property
    def rid(self) -> Rid:
        """The id of the prompt's request."""
        ...

    @property
    def prompt_text(self) -> str:
        """The prompt's text; "" unless the shape `is_echoed`."""
        ...

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt as the tokenizer encoded it."""
        ...

    @property
    def encoded(self) -> Encoded:
        """What the tokenizer has made of the request."""
        ...


class Shape(Protocol):
    """What makes a response's renderer: a msgspec Struct, so that a response can be written by another process."""

    @property
    def is_echoed(self) -> bool:
        """Whether the renderer needs the prompts' texts."""
        ...

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> Renderer:
        """Return the renderer of a response to these prompts, with `choices_each` choices for each."""
        ...


def usage_member(usage: bytes) -> bytes:
    """Return `usage` as a further member of a JSON object, or nothing."""
    return b',"usage":' + usage if usage else b""


def ending(finish: Finish | None) -> dict[str, Any]:
    """Return how a choice ended, as the members both routes share."""
    return {
        "finish_reason": finish.reason if finish else None,
        "matched_stop": finish.matched if finish else None,
    }


def named_tier(service_tier: str) -> dict[str, str]:
    """Return the member that names the tier of an answer, if its request asked for one."""
    return {"service_tier": service_tier} if service_tier else {}
