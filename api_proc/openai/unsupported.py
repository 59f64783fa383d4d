"""Refuses, by the field's name, known features that this server does not support yet."""

from typing import Any

from api_proc.openai.schema import ChatRequest, CompletionRequest, SamplingFields
from api_proc.server.errors import unsupported
from quartet.wire.errors import RequestError

_OF_VLLM = (
    "bad_words",
    "allowed_token_ids",
    "logits_processors",
    "truncate_prompt_tokens",
    "skip_reading_prefix_cache",
)
_NOT_SERVED = ("structural_tag", "use_beam_search")
_FOREIGN_DATA = ("prompt_embeds", "multi_modal_data", "chat_template")
"""Tensors, and code for the sandbox: never taken from a client."""
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "", "none")
"""What requests nothing."""
NEVER_SERVED = _NOT_SERVED + _OF_VLLM + _FOREIGN_DATA
"""Fields of both routes of which every value that requests something is refused."""
NEVER_IN_CHAT = ("echo", "audio", "add_special_tokens", "functions", "function_call")
_LEGACY = {"functions": "tools", "function_call": "tool_choice"}
"""Older names, by those that have replaced them."""


def refuse_unsupported(request: ChatRequest | CompletionRequest) -> None:
    """Raise RequestError 400 for the first field that requests an unsupported feature."""
    _refuse_set(request, NEVER_SERVED)
    if isinstance(request, ChatRequest):
        _refuse_chat_only(request)
    else:
        _refuse_completion_only(request)


def _refuse_chat_only(request: ChatRequest) -> None:
    _refuse_set(request, ("echo", "audio", "add_special_tokens"))
    for name, newer in _LEGACY.items():
        if getattr(request, name) not in _NOTHING:
            raise RequestError(400, "unsupported_parameter", f"{name} is not supported: use {newer}", name)
    if request.modalities not in (None, [], ["text"]):
        raise unsupported("modalities")


def _refuse_completion_only(request: CompletionRequest) -> None:
    if request.suffix:
        raise unsupported("suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise unsupported("best_of")


def _refuse_set(request: SamplingFields, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(request, name) not in _NOTHING:
            raise unsupported(name)
