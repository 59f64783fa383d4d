"""Completion responses as bytes: `text_completion` events and bodies."""

from collections.abc import Sequence
from typing import Any

import msgspec

from api_proc.openai.logprobs import completion_logprobs
from api_proc.server.rendering import ChoiceOutput, OpenAIEvents, Prompted, ending, named_tier, usage_member
from quartet.wire.frames import Finish, TextLogprobs

_encode = msgspec.json.encode


class CompletionShape(msgspec.Struct, frozen=True, tag="completion"):
    """What makes the renderer of a completion response."""

    created: int
    model: str
    is_echoed: bool
    has_logprobs: bool
    service_tier: str = ""

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "CompletionRenderer":
        """Return the renderer of one response."""
        echoes = [one.prompt_text if self.is_echoed else "" for one in prompts for _ in range(choices_each)]
        answer_id = f"cmpl-{prompts[0].rid.hex()}"
        return CompletionRenderer(answer_id, self.created, self.model, echoes, self.has_logprobs, self.service_tier)


class CompletionRenderer(OpenAIEvents):
    """Implements Renderer for one completion response.

    `echoes` has one text per choice, put before its output; empty for no echo. Only with `has_logprobs` does output
    carry log-probabilities.
    """

    def __init__(
        self, answer_id: str, created: int, model: str, echoes: list[str], has_logprobs: bool, service_tier: str = ""
    ) -> None:
        self._identity: dict[str, Any] = {
            "id": answer_id,
            "object": "text_completion",
            "created": created,
            "model": model,
            **named_tier(service_tier),
        }
        self._echoes = echoes
        self._has_logprobs = has_logprobs
        self._text_lengths = [0] * len(echoes)
        self._waiting: list[list[TextLogprobs]] = [[] for _ in echoes]
        """Entries whose token begins in text that is held back: a stop string may still cut it off."""
        self._head = b"data: " + _encode(self._identity)[:-1]
        self._text = [self._head + b',"choices":[{"index":%d,"text":' % choice for choice in range(len(echoes))]

    def first(self, choice: int) -> bytes:
        """Return the event of the echoed prompt, if there is one."""
        return self._event(choice, self._echoes[choice], b"null", b"") if self._echoes[choice] else b""

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of new text; nothing if there is no text and every entry waits."""
        if not self._has_logprobs and not usage:
            return self._text[choice] + _encode(text) + b',"logprobs":null,"finish_reason":null}]}\n\n'
        self._text_lengths[choice] += len(text)
        waiting = self._waiting[choice]
        waiting += logprobs or ()
        ready = sum(entry.offset <= self._text_lengths[choice] for entry in waiting)
        if not ready and not text:
            return b""
        return self._event(choice, text, self._logprobs(choice, ready), usage)

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the event with the finish reason and the stop that matched, after what has waited until now."""
        waiting = len(self._waiting[choice])
        rest = self._event(choice, "", self._logprobs(choice, waiting), usage) if waiting else b""
        end = _encode({"logprobs": None, **ending(finish)})
        return rest + self._text[choice] + b'"",' + end[1:] + b"]" + usage_member(usage) + b"}\n\n"

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
        text, echo, logprobs = choice.text, self._echoes[index], choice.logprobs
        columns = completion_logprobs(logprobs, len(echo), len(text)) if logprobs else None
        return {
            "index": index,
            "text": echo + text,
            "logprobs": columns,
            **ending(choice.finish),
        }
