"""Completion responses as bytes: `text_completion` events and bodies."""

from collections.abc import Sequence
from typing import Any

import msgspec

from api_proc.openai.logprobs import completion_logprobs, echo_logprobs, prompt_and_output
from api_proc.server.rendering import ChoiceOutput, OpenAIEvents, Prompted, ending, named_tier, usage_member
from quartet.wire.frames import Finish, TextLogprobs

_encode = msgspec.json.encode


class CompletionShape(msgspec.Struct, frozen=True, tag="completion"):
    """What makes the renderer of a completion response. `logprobs`: alternatives to each token, -1 for no
    log-probabilities."""

    created: int
    model: str
    is_echoed: bool
    logprobs: int
    service_tier: str = ""

    @property
    def scores_echo(self) -> bool:
        """Whether the prompt is shown with its log-probabilities."""
        return self.is_echoed and self.logprobs >= 0

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "CompletionRenderer":
        """Return the renderer of one response."""
        echoes = [one.prompt_text if self.is_echoed else "" for one in prompts for _ in range(choices_each)]
        answer_id = f"cmpl-{prompts[0].rid.hex()}"
        return CompletionRenderer(self, answer_id, echoes)


class CompletionRenderer(OpenAIEvents):
    """Implements Renderer for one completion response.

    `echoes` has one text per choice, put before its output; empty for no echo.
    """

    def __init__(self, shape: CompletionShape, answer_id: str, echoes: list[str]) -> None:
        self._identity: dict[str, Any] = {
            "id": answer_id,
            "object": "text_completion",
            "created": shape.created,
            "model": shape.model,
            **named_tier(shape.service_tier),
        }
        self._shape = shape
        self._echoes = echoes
        self._has_logprobs = shape.logprobs >= 0
        self._text_lengths = [0] * len(echoes)
        self._waiting: list[list[TextLogprobs]] = [[] for _ in echoes]
        """Entries whose token begins in text that is held back: a stop string may still cut it off."""
        self._head = b"data: " + _encode(self._identity)[:-1]
        self._text = [self._head + b',"choices":[{"index":%d,"text":' % choice for choice in range(len(echoes))]

    def first(self, choice: int) -> bytes:
        """Return the event of the echoed prompt, if there is one; a scored one waits for its scores."""
        is_shown = self._echoes[choice] and not self._shape.scores_echo
        return self._event(choice, self._echoes[choice], b"null", b"") if is_shown else b""

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of new text; nothing if there is no text and every entry waits. A scored echo goes first."""
        if not self._has_logprobs and not usage:
            return self._text[choice] + _encode(text) + b',"logprobs":null,"finish_reason":null}]}\n\n'
        echoed = b""
        if logprobs and logprobs[0].rank:
            prompt, logprobs = prompt_and_output(logprobs)
            echoed = self._event(choice, self._echoes[choice], _encode(self._echoed(choice, prompt)), usage)
        self._text_lengths[choice] += len(text)
        waiting = self._waiting[choice]
        waiting += logprobs or ()
        ready = sum(entry.offset <= self._text_lengths[choice] for entry in waiting)
        if not ready and not text:
            return echoed
        return echoed + self._event(choice, text, self._logprobs(choice, ready), usage)

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the event with the finish reason and the stop that matched, after what has waited until now."""
        waiting = len(self._waiting[choice])
        rest = self._event(choice, "", self._logprobs(choice, waiting), usage) if waiting else b""
        end = _encode({"logprobs": None, **ending(finish)})
        return rest + self._text[choice] + b'"",' + end[1:] + b"]" + usage_member(usage) + b"}\n\n"

    def _echoed(self, choice: int, prompt: list[TextLogprobs]) -> dict[str, list[Any]]:
        return echo_logprobs(prompt, self._echoes[choice], self._shape.logprobs)

    def _logprobs(self, choice: int, count: int) -> bytes:
        """Return the `logprobs` of the first `count` waiting entries, which wait no longer."""
        entries, self._waiting[choice] = self._waiting[choice][:count], self._waiting[choice][count:]
        if not entries:
            return b"null"
        return _encode(completion_logprobs(entries, len(self._echoes[choice]), self._text_lengths[choice]))

    def _event(self, choice: int, text: str, logprobs: bytes, usage: bytes) -> bytes:
        return b"".join(
            (
                self._text[choice],
                _encode(text),
                b',"logprobs":',
                logprobs,
                b',"finish_reason":null}]',
                usage_member(usage),
                b"}\n\n",
            )
        )

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return the event with no choices that carries the usage."""
        return self._head + b',"choices":[]' + usage_member(usage) + b',"timings":' + timings + b"}\n\n"

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed."""
        body = {
            **self._identity,
            "choices": [self._whole_choice(index, choice) for index, choice in enumerate(choices)],
            "usage": msgspec.Raw(usage),
            "timings": msgspec.Raw(timings),
        }
        return _encode(body)

    def _whole_choice(self, index: int, choice: ChoiceOutput) -> dict[str, Any]:
        text, echo = choice.text, self._echoes[index]
        prompt, output = prompt_and_output(choice.logprobs)
        columns = completion_logprobs(output, len(echo), len(text)) if output else {}
        for name, values in (self._echoed(index, prompt) if prompt else {}).items():
            columns[name] = values + columns.get(name, [])
        return {
            "index": index,
            "text": echo + text,
            "logprobs": columns or None,
            **ending(choice.finish),
        }
