"""Chat responses as bytes: `chat.completion.chunk` events and `chat.completion` bodies."""

from collections.abc import Sequence
from typing import Any

import msgspec

from api_proc.openai.logprobs import chat_logprobs
from api_proc.server.rendering import ChoiceOutput, OpenAIEvents, Prompted, ending, named_tier, usage_member
from quartet.wire.frames import Finish, TextLogprobs

_encode = msgspec.json.encode


class ChatShape(msgspec.Struct, frozen=True, tag="chat"):
    """What makes the renderer of a chat response."""

    created: int
    model: str
    service_tier: str = ""

    @property
    def is_echoed(self) -> bool:
        """Chat shows no prompt."""
        return False

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "ChatRenderer":
        """Return the renderer of one response."""
        return ChatRenderer(
            f"chatcmpl-{prompts[0].rid.hex()}", self.created, self.model, choices_each, self.service_tier
        )


class ChatRenderer(OpenAIEvents):
    """Implements Renderer for one chat response."""

    def __init__(self, answer_id: str, created: int, model: str, choices: int, service_tier: str = "") -> None:
        self._identity: dict[str, Any] = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            **named_tier(service_tier),
        }
        self._head = b"data: " + _encode(self._identity)[:-1]
        self._choice = [self._head + b',"choices":[{"index":%d,' % choice for choice in range(choices)]
        self._content = [start + b'"delta":{"content":' for start in self._choice]

    def first(self, choice: int) -> bytes:
        """Return the event with the role."""
        return self._content[choice] + b'"","role":"assistant"},"logprobs":null,"finish_reason":null}]}\n\n'

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of new text."""
        if not logprobs and not usage:
            return self._content[choice] + _encode(text) + b'},"logprobs":null,"finish_reason":null}]}\n\n'
        probabilities = _encode(chat_logprobs(logprobs)) if logprobs else b"null"
        return b"".join(
            (
                self._content[choice],
                _encode(text),
                b'},"logprobs":',
                probabilities,
                b',"finish_reason":null}]',
                usage_member(usage),
                b"}\n\n",
            )
        )

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the event with the finish reason and the stop that matched."""
        end = _encode({"delta": {}, "logprobs": None, **ending(finish)})
        return self._choice[choice] + end[1:] + b"]" + usage_member(usage) + b"}\n\n"

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return the event with no choices that carries the usage."""
        return self._head + b',"choices":[]' + usage_member(usage) + b',"timings":' + timings + b"}\n\n"

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed."""
        body = {
            **self._identity,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": chat_logprobs(choice.logprobs) if choice.logprobs else None,
                    **ending(choice.finish),
                }
                for index, choice in enumerate(choices)
            ],
            "usage": msgspec.Raw(usage),
            "timings": msgspec.Raw(timings),
        }
        return _encode(body)
