"""The routes that can be measured: the body of a request, and what an event of the response says."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from quartet.bench.plan import PlannedRequest, Target
from quartet.wire.frames import unpack_ids


class PromptDetails(msgspec.Struct):
    """Part of Usage."""

    cached_tokens: int | None = 0


class Usage(msgspec.Struct):
    """Tokens as the server counts them; also the `meta_info` of SGLang's native route."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None
    cached_tokens: int | None = 0


class Event(NamedTuple):
    """What one event says.

    Args:
        text: output; None if the event carries none, which an empty text does.
        tokens: all tokens of the output so far, where events say so; else 0.
        usage: the last word on tokens.
        error: what the server reports in place of output.
    """

    text: str | None = None
    tokens: int = 0
    usage: Usage | None = None
    error: str = ""


class _Text(msgspec.Struct):
    text: str | None = ""


class _Completion(msgspec.Struct):
    choices: list[_Text] = []
    usage: Usage | None = None
    error: Any = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None

    def output(self) -> str | None:
        text = self.content or self.reasoning or self.reasoning_content
        if text or self.tool_calls:
            return text or ""
        # A token may have no text of its own; the opening event has a role.
        return "" if self.content == "" and self.role is None else None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Chat(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


class _Generated(msgspec.Struct):
    text: str = ""
    output_ids: list[int] = []
    meta_info: Usage | None = None
    error: Any = None


_completion = msgspec.json.Decoder(_Completion)
_chat = msgspec.json.Decoder(_Chat)
_generated = msgspec.json.Decoder(_Generated)


def read_completion(data: bytes) -> Event:
    """Read an event of /v1/completions; raises msgspec.MsgspecError."""
    event = _completion.decode(data)
    return Event(event.choices[0].text or "" if event.choices else None, 0, event.usage, _error(event.error))


def read_chat(data: bytes) -> Event:
    """Read an event of /v1/chat/completions; raises msgspec.MsgspecError."""
    event = _chat.decode(data)
    return Event(event.choices[0].delta.output() if event.choices else None, 0, event.usage, _error(event.error))


def read_generated(data: bytes) -> Event:
    """Read an event of /generate; raises msgspec.MsgspecError."""
    event = _generated.decode(data)
    tokens = event.meta_info.completion_tokens or 0 if event.meta_info else 0
    return Event(event.text if tokens else None, tokens, event.meta_info, _error(event.error))


def _error(found: Any) -> str:
    message = found.get("message") if isinstance(found, dict) else found
    return "" if found is None else str(message or found)


class Route(NamedTuple):
    """A path, whether it takes token ids, and how its bodies and events look."""

    path: str
    takes_ids: bool
    body: Callable[[Target, PlannedRequest], dict[str, Any]]
    read: Callable[[bytes], Event]


def _prompt(request: PlannedRequest) -> str | list[int]:
    return unpack_ids(request.ids) if request.ids else request.text


def _sampling(target: Target) -> dict[str, Any]:
    return {"temperature": target.temperature} | ({"ignore_eos": True} if target.has_ignore_eos else {})


def _openai(target: Target, request: PlannedRequest) -> dict[str, Any]:
    body = {"max_tokens": request.output_tokens, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"model": target.model} if target.model else {}
    body |= {"priority": request.priority} if request.priority is not None else {}
    return body | _sampling(target) | target.extra_body


def completion_body(target: Target, request: PlannedRequest) -> dict[str, Any]:
    """Return the body of a text completion."""
    return {"prompt": _prompt(request)} | _openai(target, request)


def chat_body(target: Target, request: PlannedRequest) -> dict[str, Any]:
    """Return the body of a chat completion: one message of the user."""
    return {"messages": [{"role": "user", "content": request.text}]} | _openai(target, request)


def generate_body(target: Target, request: PlannedRequest) -> dict[str, Any]:
    """Return the body of SGLang's native route."""
    sampling = {"max_new_tokens": request.output_tokens} | _sampling(target)
    prompt = {"input_ids": unpack_ids(request.ids)} if request.ids else {"text": request.text}
    body = {**prompt, "sampling_params": sampling, "stream": True}
    return body | ({"priority": request.priority} if request.priority is not None else {}) | target.extra_body


COMPLETIONS = Route("/v1/completions", True, completion_body, read_completion)
CHAT = Route("/v1/chat/completions", False, chat_body, read_chat)
GENERATE = Route("/generate", True, generate_body, read_generated)

ROUTES: dict[str, Route] = {
    "openai": COMPLETIONS,
    "openai-chat": CHAT,
    "vllm": COMPLETIONS,
    "vllm-chat": CHAT,
    "sglang": GENERATE,
    "sglang-oai": COMPLETIONS,
    "sglang-oai-chat": CHAT,
}
"""Routes by the names that vLLM's and SGLang's clients give them."""
