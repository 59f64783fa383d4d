"""POST /v1/responses: body -> ResponseTask."""

from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from api_proc.openai.chat import chat_task
from api_proc.openai.chat_format import ChatFormat
from api_proc.openai.response_task import generated, serve
from api_proc.openai.translation import fields_named, named
from api_proc.responses.rendering import ResponseShape
from api_proc.responses.schema import FIELDS, ResponseRequest
from api_proc.responses.translation import NAMES, chat_request
from api_proc.server.respond import ResponseTask
from api_proc.server.service import Service

decoder = msgspec.json.Decoder(ResponseRequest)

_REPEATED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "temperature",
    "top_logprobs",
    "top_p",
    "user",
)
"""Fields that a response repeats as they were sent."""


async def responses(request: web.Request) -> web.StreamResponse:
    """Answer a conversation by output items."""
    return await serve(request, decoder, response_task, named(NAMES, generated), FIELDS)


def response_task(request: web.Request, service: Service, wanted: ResponseRequest) -> ResponseTask:
    """Check a request and return its task; raises RequestError with the field at fault."""
    chat, names = chat_request(wanted, service.config.scheduler.allow_auto_truncate)
    with fields_named(names):
        return chat_task(request, service, chat, partial(_shape, wanted))


def _shape(wanted: ResponseRequest, service: Service, form: ChatFormat) -> ResponseShape:
    return ResponseShape(form, int(service.wall_time()), msgspec.json.encode(_told(wanted, service.model_name)))


def _told(wanted: ResponseRequest, model: str) -> dict[str, Any]:
    """Return what a response repeats of its request, with OpenAI's defaults."""
    reasoning, text = wanted.reasoning, wanted.text
    return {
        **{name: getattr(wanted, name) for name in _REPEATED},
        "model": model,
        "metadata": wanted.metadata or {},
        "parallel_tool_calls": wanted.parallel_tool_calls is not False,
        "reasoning": {"effort": reasoning and reasoning.effort, "summary": None},
        "text": {"format": (text and text.format) or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": wanted.tool_choice or "auto",
        "tools": wanted.tools or [],
        "truncation": wanted.truncation or "disabled",
        "background": False,
        "store": False,
        "previous_response_id": None,
    }
