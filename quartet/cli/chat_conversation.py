"""A conversation with a model over HTTP: its turns, and each answer as it arrives. No terminal, no signals."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from quartet.cli.engine_client import EngineClient
from quartet.wire.errors import EngineError

INTERRUPTED = "interrupted"


class Model(msgspec.Struct):
    """One served model."""

    id: str


class Models(msgspec.Struct):
    """What GET /v1/models gives."""

    data: list[Model]


class Display(Protocol):
    """Where an answer is shown while it arrives, in pieces of any length."""

    def thinking(self, piece: str) -> None:
        """Show more of the thinking before the answer."""

    def text(self, piece: str) -> None:
        """Show more of the answer."""


@dataclass(slots=True)
class Answer:
    """One answer as received. `ttft_s` is the time to its first text, thinking included, `total_s` to its end."""

    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    ttft_s: float = 0.0
    total_s: float = 0.0

    @property
    def is_interrupted(self) -> bool:
        """Return whether `Conversation.stop` ended it."""
        return self.finish_reason == INTERRUPTED


class Conversation:
    """The turns so far, and the settings of the next request."""

    def __init__(self, engine: EngineClient, model: str, options: dict[str, Any], system: str = "") -> None:
        self.engine = engine
        self.model = model
        self.system = system
        self._options = options
        self._turns: list[dict[str, str]] = []
        self._answer: Answer | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return what has been said, as a request has it: the system text first, if there is one."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self._turns]

    def reset(self) -> None:
        """Forget all turns; the system text stays."""
        self._turns.clear()

    def stop(self) -> None:
        """End the answer that arrives: its connection closes, and the server frees the request."""
        if self._answer and self._reading:
            self._answer.finish_reason = INTERRUPTED
            self._reading.cancel()

    async def ask(self, question: str, display: Display | None = None) -> Answer:
        """Return the answer, shown on `display` as it arrives. One that is stopped stays in the conversation.

        Raises EngineError; the question is then no part of the conversation, so that it can be repeated.
        """
        asked = {"role": "user", "content": question}
        body = {
            "model": self.model,
            "messages": [*self.messages, asked],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._options,
        }
        answer = self._answer = Answer()
        self._reading = asyncio.ensure_future(self._read(body, answer, display))
        try:
            await self._reading
        except asyncio.CancelledError:
            if not answer.is_interrupted:
                raise
        finally:
            self._answer = self._reading = None
        self._turns += [asked, {"role": "assistant", "content": answer.text}]
        return answer

    async def _read(self, body: dict[str, Any], answer: Answer, display: Display | None) -> None:
        start_s = time.monotonic()
        try:
            async with contextlib.aclosing(self.engine.events("/v1/chat/completions", body)) as events:
                async for event in events:
                    answer.usage = event.get("usage") or answer.usage
                    for choice in event.get("choices") or ():
                        _take(choice, answer, display, start_s)
        finally:
            answer.total_s = time.monotonic() - start_s


def _take(choice: dict[str, Any], answer: Answer, display: Display | None, start_s: float) -> None:
    delta = choice.get("delta") or {}
    thinking, text = delta.get("reasoning_content") or delta.get("reasoning") or "", delta.get("content") or ""
    if (thinking or text) and not answer.ttft_s:
        answer.ttft_s = time.monotonic() - start_s
    answer.thinking += thinking
    answer.text += text
    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    if display and thinking:
        display.thinking(thinking)
    if display and text:
        display.text(text)


async def first_model(engine: EngineClient) -> str:
    """Return the name of the first served model. Raises EngineError."""
    models = await engine.get("/v1/models", Models)
    if not models.data:
        raise EngineError(f"{engine.address} serves no model")
    return models.data[0].id


def summary(answer: Answer) -> str:
    """Return what the answer took, in one line. Tokens per second count from the first token on."""
    tokens = int(answer.usage.get("completion_tokens") or 0)
    details = answer.usage.get("prompt_tokens_details") or {}
    decode_s = answer.total_s - answer.ttft_s
    parts = [
        f"{tokens} tokens" if answer.usage else "",
        f"{answer.total_s:.1f} s",
        f"{(tokens - 1) / decode_s:.0f} tokens/s" if tokens > 1 and decode_s > 0 else "",
        f"first after {answer.ttft_s:.2f} s" if answer.ttft_s else "",
        f"prompt {answer.usage['prompt_tokens']} ({details.get('cached_tokens') or 0} cached)" if answer.usage else "",
        {INTERRUPTED: "stopped", "length": "cut at the length limit"}.get(answer.finish_reason or "", ""),
    ]
    return ", ".join(filter(None, parts))
