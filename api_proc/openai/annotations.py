"""Members of an answer beside OpenAI's, on request: the ids of its tokens, as vLLM names them.

A renderer around that of the route: it decodes what the other has written and adds to it. So no other answer pays for
them, and every shape of the two routes has them.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from api_proc.openai.chat_rendering import ChatShape
from api_proc.openai.completion_rendering import CompletionShape
from api_proc.openai.parsed_rendering import ParsedChatShape
from api_proc.server.rendering import ChoiceOutput, OpenAIEvents, Prompted, Renderer, Shape, TakesIds
from quartet.wire.errors import RequestError
from quartet.wire.frames import Finish, TextLogprobs

_DATA, _END = b"data: ", b"\n\n"


class AnnotatedShape(msgspec.Struct, frozen=True, tag="annotated"):
    """What makes the renderer of an answer with `token_ids` and `prompt_token_ids`, around that of `shape`."""

    shape: ChatShape | ParsedChatShape | CompletionShape

    @property
    def is_echoed(self) -> bool:
        """Whether the renderer of `shape` needs the prompts' texts."""
        return self.shape.is_echoed

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "AnnotatedRenderer":
        """Return the renderer of one response."""
        inner = self.shape.renderer(prompts, choices_each)
        prompt_ids = [one.prompt_ids for one in prompts for _ in range(choices_each)]
        return AnnotatedRenderer(inner, prompt_ids, isinstance(self.shape, CompletionShape))


def annotated(shape: Shape) -> Shape:
    """Return `shape` with token ids, unless it is of a route that has no place for them."""
    return AnnotatedShape(shape) if isinstance(shape, ChatShape | ParsedChatShape | CompletionShape) else shape


class AnnotatedRenderer:
    """Implements Renderer around `inner`.

    `prompt_ids` has one entry per choice. Members of the prompt stand in each choice if they `are_in_choices`, else
    beside the choices. In a stream members come with the next event of their choice.
    """

    keep_alive: ClassVar[bytes] = OpenAIEvents.keep_alive
    end_of_stream: ClassVar[bytes] = OpenAIEvents.end_of_stream

    def __init__(self, inner: Renderer, prompt_ids: list[list[int]], are_in_choices: bool) -> None:
        self._inner = inner
        self._prompt_ids = prompt_ids
        self._are_in_choices = are_in_choices
        self._of_prompt: list[dict[str, Any]] = [{"prompt_token_ids": ids} for ids in prompt_ids]
        """What no event has shown yet."""
        self._ids: list[list[int]] = [[] for _ in prompt_ids]

    def take_ids(self, choice: int, ids: list[int]) -> None:
        """Keep the ids of the output that is rendered next."""
        self._ids[choice] += ids
        if isinstance(self._inner, TakesIds):
            self._inner.take_ids(choice, ids)

    def first(self, choice: int) -> bytes:
        """Return the event that opens a choice, or nothing."""
        return self._annotated(choice, self._inner.first(choice))

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of new text."""
        return self._annotated(choice, self._inner.delta(choice, text, logprobs, usage))

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the event that ends a choice, with the ids that gave no text."""
        return self._annotated(choice, self._inner.finish(choice, finish, usage))

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return the event with no choices that carries the usage."""
        return self._inner.usage(usage, timings)

    def error(self, error: RequestError) -> bytes:
        """Return the event of an error that ends the stream."""
        return self._inner.error(error)

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed."""
        body = msgspec.json.decode(self._inner.whole(choices, usage, timings))
        for index, choice in enumerate(choices):
            self._add(body, body["choices"][index], self._of_prompt[index], choice.ids)
        return msgspec.json.encode(body)

    def _annotated(self, choice: int, events: bytes) -> bytes:
        """Return the events of a choice, of which the first has all that is to be shown."""
        if not events:
            return events
        event, _, rest = events.partition(_END)
        body = msgspec.json.decode(event.removeprefix(_DATA))
        self._add(body, body["choices"][0], self._of_prompt[choice], self._ids[choice])
        self._of_prompt[choice], self._ids[choice] = {}, []
        return _DATA + msgspec.json.encode(body) + _END + rest

    def _add(self, body: dict[str, Any], choice: dict[str, Any], of_prompt: dict[str, Any], ids: list[int]) -> None:
        (choice if self._are_in_choices else body).update(of_prompt)
        choice["token_ids"] = ids
