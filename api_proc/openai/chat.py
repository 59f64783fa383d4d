"""POST /v1/chat/completions: body -> ResponseTask."""

import msgspec
from aiohttp import web

from api_proc.openai.chat_format import ChatFormat, MakeShape, format_of
from api_proc.openai.chat_grammar import chat_grammar
from api_proc.openai.chat_messages import chat_prompt
from api_proc.openai.chat_rendering import ChatShape
from api_proc.openai.models import check_model
from api_proc.openai.params import MAX_INT32, check_range
from api_proc.openai.parsed_rendering import ParsedChatShape
from api_proc.openai.response_task import response_task, serve
from api_proc.openai.schema import ChatRequest
from api_proc.openai.tools import tool_use
from api_proc.openai.unsupported import refuse_unsupported
from api_proc.server.errors import invalid
from api_proc.server.rendering import Shape
from api_proc.server.respond import ResponseTask
from api_proc.server.service import Service
from quartet.wire.lengths import context_length_exceeded
from quartet.wire.sampling_bounds import MAX_TOP_LOGPROBS

decoder = msgspec.json.Decoder(ChatRequest)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    return await serve(request, decoder, chat_task)


def chat_shape(service: Service, form: ChatFormat) -> Shape:
    """Return what writes a chat response; one that is content alone needs no parser."""
    created, model = int(service.wall_time()), service.model_name
    return ChatShape(created, model) if form.is_plain else ParsedChatShape(created, model, form)


def chat_task(
    request: web.Request, service: Service, chat: ChatRequest, make_shape: MakeShape = chat_shape
) -> ResponseTask:
    """Check a request and return its task; raises RequestError with the field at fault.

    Routes that translate their body into a ChatRequest give a `make_shape` of their own, and share all the rest: the
    checks, the prompt, tools and grammars, and the parsers of the output.
    """
    check_model(service, chat.model)
    refuse_unsupported(chat)
    context_length = service.config.require_model().context_length
    if len(chat.messages) > context_length and not service.config.scheduler.allow_auto_truncate:
        # Before any of them is looked at; each takes a token at least.
        raise context_length_exceeded(context_length, f"at least {len(chat.messages)}", "messages")
    use = tool_use(chat)
    form = format_of(service.config, use, bool(chat.continue_final_message))
    prompt = chat_prompt(chat, use.described() if use else None)
    return response_task(
        request,
        service,
        chat,
        [prompt],
        max_new_tokens=_limit(chat),
        logprobs=_logprobs(chat),
        shape=make_shape(service, form),
        grammar=chat_grammar(chat, use, form),
        markers=form.markers,
    )


def _limit(chat: ChatRequest) -> int | None:
    name = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    limit: int | None = getattr(chat, name)
    if limit is not None:
        check_range(name, limit, 1, MAX_INT32)
    return limit


def _logprobs(chat: ChatRequest) -> int:
    """Return the number of alternatives at each position, -1 for no log-probabilities."""
    top_logprobs = chat.top_logprobs or 0
    check_range("top_logprobs", top_logprobs, 0, MAX_TOP_LOGPROBS)
    if top_logprobs and not chat.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true")
    return top_logprobs if chat.logprobs else -1
