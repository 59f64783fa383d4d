"""The interface between output and the JSON of a route: one renderer per response.

Renderers return complete SSE events (`data: ...` and the blank line) or whole JSON bodies, as bytes. They are on the
path of every token: everything that does not change is encoded once, when the response begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from quartet.wire.frames import Finish, TextLogprobs
from quartet.wire.ids import Rid

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(slots=True)
class ChoiceOutput:
    """The output of one choice, gathered: all of it, or what a slow client has not been sent yet."""

    parts: list[str] = field(default_factory=list)
    logprobs: list[TextLogprobs] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.parts)

    def add(self, text: str, logprobs: list[TextLogprobs] | None, finish: Finish | None) -> None:
        """Append one increment."""
        self.parts.append(text)
        if logprobs:
            self.logprobs.extend(logprobs)
        if finish is not None:
            self.finish = finish


class Renderer(Protocol):
    """Writes one response in the shape of its route. `usage` and `timings` are JSON; `usage` b"" leaves it out."""

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

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed."""
        ...


class Prompted(Protocol):
    """What a renderer is made from: each prompt of the response."""

    @property
    def rid(self) -> Rid:
        """The id of the prompt's request."""
        ...

    @property
    def prompt_text(self) -> str:
        """The prompt's text, if it is echoed."""
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
