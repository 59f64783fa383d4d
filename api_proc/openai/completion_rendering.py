"""Completion responses as bytes: `text_completion` events and bodies."""

from typing import Any

import msgspec

from api_proc.openai.logprobs import completion_logprobs
from api_proc.server.rendering import ChoiceOutput, ending, usage_member
from quartet.wire.frames import Finish, TextLogprobs

_encode = msgspec.json.encode


class CompletionRenderer:
    """Implements Renderer for one completion response.

    `echoes` has one text per choice, put before its output; empty for no echo.
    """

    def __init__(self, answer_id: str, created: int, model: str, echoes: list[str]) -> None:
        self._identity: dict[str, Any] = {
            "id": answer_id,
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._echoes = echoes
        self._offsets = [len(echo) for echo in echoes]
        self._head = b"data: " + _encode(self._identity)[:-1]
        self._text = [self._head + b',"choices":[{"index":%d,"text":' % choice for choice in range(len(echoes))]

    def first(self, choice: int) -> bytes:
        """Return the event of the echoed prompt, if there is one."""
        return self.delta(choice, self._echoes[choice], None, b"") if self._echoes[choice] else b""

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of new text."""
        if not logprobs and not usage:
            return self._text[choice] + _encode(text) + b',"logprobs":null,"finish_reason":null}]}\n\n'
        probabilities = b"null"
        if logprobs:
            columns, self._offsets[choice] = completion_logprobs(logprobs, self._offsets[choice])
            probabilities = _encode(columns)
        return b"".join(
            (
                self._text[choice],
                _encode(text),
                b',"logprobs":',
                probabilities,
                b',"finish_reason":null}]',
                usage_member(usage),
                b"}\n\n",
            )
        )

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the event with the finish reason and the stop that matched."""
        end = _encode({"logprobs": None, **ending(finish)})
        return self._text[choice] + b'"",' + end[1:] + b"]" + usage_member(usage) + b"}\n\n"

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
        columns = completion_logprobs(choice.logprobs, self._offsets[index])[0] if choice.logprobs else None
        return {
            "index": index,
            "text": self._echoes[index] + choice.text,
            "logprobs": columns,
            **ending(choice.finish),
        }
