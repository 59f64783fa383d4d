"""POST /v1/chat/completions: body -> Job."""

from typing import Any

import msgspec
from aiohttp import web

from api_proc.openai import routing
from api_proc.openai.chat_rendering import ChatRenderer
from api_proc.openai.params import MAX_INT32, MAX_TOP_LOGPROBS, choices_wanted, sampling_params, whole
from api_proc.openai.schema import ChatRequest, Message
from api_proc.openai.unsupported import refuse_unsupported
from api_proc.server.bodies import decode_body, read_body
from api_proc.server.errors import draining, invalid, unsupported
from api_proc.server.respond import Job, answer
from api_proc.server.service import SERVICE, Service
from quartet.client.engine import GenerateRequest
from quartet.wire.frames import ChatPrompt, SamplingParams

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles by what templates call them: `developer` is the newer name of `system`."""

decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    service = request.app[SERVICE]
    if service.is_draining:
        raise draining()
    body = await read_body(request, service.config.server.max_body_bytes, service.timeouts.body_s)
    return await answer(request, service, chat_job(request, service, decode_body(decoder, body)))


def chat_job(request: web.Request, service: Service, chat: ChatRequest) -> Job:
    """Check a request and return what to do; raises RequestError with the field at fault."""
    routing.check_model(service, chat.model)
    refuse_unsupported(chat)
    options = chat.stream_options
    choices = choices_wanted(chat.n)
    generate = GenerateRequest(
        prompt=chat_prompt(chat),
        params=_params(service, chat),
        n=choices,
        priority=routing.priority(request, chat),
        tenant=routing.tenant(request, service),
        cache_salt=routing.cache_salt(chat),
        routing_key=routing.routing_key(chat),
        weight=routing.weight(chat),
        deadline_s=routing.deadline_s(request, chat),
    )
    created, model = int(service.wall_time()), service.model_name
    return Job(
        requests=(generate,),
        choices_each=choices,
        renderer=lambda made: ChatRenderer(f"chatcmpl-{made[0].rid.hex()}", created, model, choices),
        is_stream=bool(chat.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.include_usage and options.continuous_usage_stats),
    )


def chat_prompt(chat: ChatRequest) -> ChatPrompt:
    """Return the conversation as the tokenizer takes it: text contents, roles that templates know."""
    if not chat.messages:
        raise invalid("messages", "messages must not be empty")
    messages = [_message(index, message) for index, message in enumerate(chat.messages)]
    continues = bool(chat.continue_final_message)
    if continues and (chat.add_generation_prompt or messages[-1]["role"] != "assistant"):
        raise invalid(
            "continue_final_message",
            "continue_final_message needs a last message of the assistant and no add_generation_prompt",
        )
    arguments = chat.chat_template_kwargs
    return ChatPrompt(
        messages=msgspec.json.encode(messages),
        add_generation_prompt=not continues and chat.add_generation_prompt is not False,
        continue_final_message=continues,
        template_args=msgspec.json.encode(arguments) if arguments else None,
    )


def _message(index: int, message: Message) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.role in ("tool", "function"):
        raise unsupported(f"{where}.role")
    if message.role not in ROLES:
        raise invalid(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}")
    if message.tool_calls:
        raise unsupported(f"{where}.tool_calls")
    result: dict[str, Any] = {"role": ROLES[message.role], "content": _content(where, message)}
    if message.name:
        result["name"] = message.name
    return result


def _content(where: str, message: Message) -> str:
    """Return the text of a message; text parts are joined by line ends, since most templates take a string."""
    content = message.content
    if content is None:
        if message.role == "assistant":
            return ""
        raise invalid(f"{where}.content", f"{where}.content is required")
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        if part.type != "text":
            raise unsupported(f"{where}.content[{index}].type")
        if part.text is None:
            raise invalid(f"{where}.content[{index}].text", f"{where}.content[{index}].text is required")
        texts.append(part.text)
    return "\n".join(texts)


def _params(service: Service, chat: ChatRequest) -> SamplingParams:
    model = service.config.require_model()
    return sampling_params(
        chat,
        max_new_tokens=_max_tokens(chat),
        logprobs=_logprobs(chat),
        defaults=model.default_sampling,
        vocab_size=model.vocab_size,
        draw_seed=service.draw_seed,
    )


def _max_tokens(chat: ChatRequest) -> int | None:
    name, value = "max_completion_tokens", chat.max_completion_tokens
    if value is None:
        name, value = "max_tokens", chat.max_tokens
    return None if value is None else whole(name, value, 1, MAX_INT32)


def _logprobs(chat: ChatRequest) -> int:
    if chat.top_logprobs is not None:
        whole("top_logprobs", chat.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if chat.top_logprobs and not chat.logprobs:
            raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    return (chat.top_logprobs or 0) if chat.logprobs else -1
