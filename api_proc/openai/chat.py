"""POST /v1/chat/completions: body -> ResponseTask."""

from typing import Any

import msgspec
from aiohttp import web

from api_proc.openai.chat_rendering import ChatShape
from api_proc.openai.models import check_model
from api_proc.openai.params import MAX_INT32, check_range
from api_proc.openai.response_task import response_task, serve
from api_proc.openai.schema import ChatRequest, Message
from api_proc.openai.unsupported import refuse_unsupported
from api_proc.server.errors import invalid, unsupported
from api_proc.server.respond import ResponseTask
from api_proc.server.service import Service
from quartet.wire.frames import ChatPrompt
from quartet.wire.lengths import context_length_exceeded
from quartet.wire.sampling_bounds import MAX_TOP_LOGPROBS

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles by what templates call them: `developer` is the newer name of `system`."""

MAX_NESTING = 64
"""Levels of chat_template_kwargs. JSON readers recurse, and how deeply they can differs between the processes."""

decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    return await serve(request, decoder, chat_task)


def chat_task(request: web.Request, service: Service, chat: ChatRequest) -> ResponseTask:
    """Check a request and return its task; raises RequestError with the field at fault."""
    check_model(service, chat.model)
    refuse_unsupported(chat)
    context_length = service.config.require_model().context_length
    if len(chat.messages) > context_length and not service.config.scheduler.allow_auto_truncate:
        # Before any of them is looked at; each takes a token at least.
        raise context_length_exceeded(context_length, f"at least {len(chat.messages)}", "messages")
    prompt = chat_prompt(chat)
    limit_name = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    limit = getattr(chat, limit_name)
    if limit is not None:
        check_range(limit_name, limit, 1, MAX_INT32)
    top_logprobs = chat.top_logprobs or 0
    check_range("top_logprobs", top_logprobs, 0, MAX_TOP_LOGPROBS)
    if top_logprobs and not chat.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    return response_task(
        request,
        service,
        chat,
        [prompt],
        max_new_tokens=limit,
        logprobs=top_logprobs if chat.logprobs else -1,
        shape=ChatShape(int(service.wall_time()), service.model_name),
    )


def chat_prompt(chat: ChatRequest) -> ChatPrompt:
    """Return the conversation, checked, with roles that templates know; contents are text or text parts."""
    if not chat.messages:
        raise invalid("messages", "messages must not be empty")
    for index, message in enumerate(chat.messages):
        _check_message(f"messages[{index}]", message)
    continues = bool(chat.continue_final_message)
    if continues and (chat.add_generation_prompt or chat.messages[-1].role != "assistant"):
        raise invalid(
            "continue_final_message",
            "continue_final_message needs a last message of the assistant and no add_generation_prompt",
        )
    messages = [Message(ROLES[one.role], one.content or "", one.name or None) for one in chat.messages]
    arguments = chat.chat_template_kwargs
    _check_nesting("chat_template_kwargs", arguments)
    return ChatPrompt(
        messages=msgspec.json.encode(messages),
        add_generation_prompt=not continues and chat.add_generation_prompt is not False,
        continue_final_message=continues,
        template_args=msgspec.json.encode(arguments) if arguments else None,
    )


def _check_nesting(where: str, value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise invalid(where, f"{where} has more than {MAX_NESTING} levels")


def _check_message(where: str, message: Message) -> None:
    """Refuse, by the name of the field, a message that is wrong or needs an unsupported feature."""
    if message.role in ("tool", "function"):
        raise unsupported(f"{where}.role")
    if message.role not in ROLES:
        raise invalid(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}")
    if message.tool_calls:
        raise unsupported(f"{where}.tool_calls")
    if message.content is None and message.role != "assistant":
        raise invalid(f"{where}.content", f"{where}.content is required")
    for index, part in enumerate(message.content if isinstance(message.content, list) else ()):
        if part.type != "text":
            raise unsupported(f"{where}.content[{index}].type")
        if part.text is None:
            raise invalid(f"{where}.content[{index}].text", f"{where}.content[{index}].text is required")
