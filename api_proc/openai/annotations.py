"""Members of an answer beside OpenAI's, on request and as vLLM has them: ids of its tokens, scores of its prompt.

A renderer around that of the route: it decodes what the other has written and adds to it. So no other answer pays for
them, and every shape of the two routes has them.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from api_proc.openai.chat_rendering import ChatShape
from api_proc.openai.completion_rendering import CompletionShape
from api_proc.openai.logprobs import prompt_and_output, prompt_logprobs
from api_proc.openai.parsed_rendering import ParsedChatShape
from api_proc.server.rendering import ChoiceOutput, OpenAIEvents, Prompted, Renderer, Shape, TakesIds
from quartet.wire.errors import RequestError
from quartet.wire.frames import Finish, TextLogprobs

_DATA, _END = b"data: ", b"\n\n"


class AnnotatedShape(msgspec.Struct, frozen=True, tag="annotated"):
    """What makes the renderer of an answer with more members, around that of `shape`.

    `has_ids`: `token_ids` and `prompt_token_ids`. `prompt_logprobs`: alternatives of the member of that name, -1 for
    none.
    """

    shape: ChatShape | ParsedChatShape | CompletionShape
    has_ids: bool
    prompt_logprobs: int = -1

    @property
    def is_echoed(self) -> bool:
        """Whether the renderer of `shape` needs the prompts' texts."""
        return self.shape.is_echoed

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "AnnotatedRenderer":
        """Return the renderer of one response."""
        prompt_ids = [one.prompt_ids for one in prompts for _ in range(choices_each)]
        return AnnotatedRenderer(self, self.shape.renderer(prompts, choices_each), prompt_ids)


def annotated(shape: Shape, has_ids: bool, prompt_logprobs: int) -> Shape:
    """Return `shape` with what is wanted of ids and scores, unless it is of a route that has no place for them."""
    is_wanted = has_ids or prompt_logprobs >= 0
    if is_wanted and isinstance(shape, ChatShape | ParsedChatShape | CompletionShape):
        return AnnotatedShape(shape, has_ids, prompt_logprobs)
    return shape


class AnnotatedRenderer:
    """Implements Renderer around `inner`.

    `prompt_ids` has one entry per choice. Members of the prompt stand in each choice of a text completion, and beside
    the choices of a chat. In a stream members come with the next event of their choice.
    """

    keep_alive: ClassVar[bytes] = OpenAIEvents.keep_alive
    end_of_stream: ClassVar[bytes] = OpenAIEvents.end_of_stream

    def __init__(self, shape: AnnotatedShape, inner: Renderer, prompt_ids: list[list[int]]) -> None:
        self._shape = shape
        self._inner = inner
        self._prompt_ids = prompt_ids
        self._is_text = isinstance(shape.shape, CompletionShape)
        self._shows_prompt_itself = isinstance(shape.shape, CompletionShape) and shape.shape.scores_echo
        self._of_prompt: list[dict[str, Any]] = [{} for _ in prompt_ids]
        """What no event has shown yet."""
        self._ids: list[list[int]] = [[] for _ in prompt_ids]
        if shape.has_ids:
            self._of_prompt = [{"prompt_token_ids": ids} for ids in prompt_ids]

    def take_ids(self, choice: int, ids: list[int]) -> None:
        """Keep the ids of the output that is rendered next."""
        self._ids[choice] += ids
        if isinstance(self._inner, TakesIds):
            self._inner.take_ids(choice, ids)

    def first(self, choice: int) -> bytes:
        """Return the event that opens a choice, or nothing."""
        return self._annotated(choice, self._inner.first(choice))

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of new text, if there is any."""
        if logprobs and logprobs[0].rank:
            logprobs = self._take_prompt(choice, logprobs)
            if not text and not logprobs:
                return b""
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
        for index, choice in enumerate(choices):
            if choice.logprobs and choice.logprobs[0].rank:
                choice.logprobs = self._take_prompt(index, choice.logprobs)
        body = msgspec.json.decode(self._inner.whole(choices, usage, timings))
        for index, choice in enumerate(choices):
            self._add(body, body["choices"][index], self._of_prompt[index], choice.ids)
        return msgspec.json.encode(body)

    def _take_prompt(self, choice: int, logprobs: list[TextLogprobs]) -> list[TextLogprobs]:
        """Keep the scores of the prompt, which come first; returns those that the other renderer is to have."""
        prompt, output = prompt_and_output(logprobs)
        if self._shape.prompt_logprobs >= 0:
            scores = prompt_logprobs(prompt, self._prompt_ids[choice], self._shape.prompt_logprobs)
            self._of_prompt[choice]["prompt_logprobs"] = scores
        return logprobs if self._shows_prompt_itself else output

    def _annotated(self, choice: int, events: bytes) -> bytes:
        """Return the events of a choice, of which the first has all that is to be shown."""
        annotated = []
        for event in events.split(_END)[:-1]:
            body = msgspec.json.decode(event.removeprefix(_DATA))
            self._add(body, body["choices"][0], self._of_prompt[choice], self._ids[choice])
            self._of_prompt[choice], self._ids[choice] = {}, []
            annotated.append(_DATA + msgspec.json.encode(body) + _END)
        return b"".join(annotated)

    def _add(self, body: dict[str, Any], choice: dict[str, Any], of_prompt: dict[str, Any], ids: list[int]) -> None:
        (choice if self._is_text else body).update(of_prompt)
        if self._shape.has_ids:
            choice["token_ids"] = ids
