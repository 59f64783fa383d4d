"""POST /v1/messages and /v1/messages/count_tokens."""

from contextlib import ExitStack
from functools import partial

import msgspec
from aiohttp import web

from api_proc.anthropic.rendering import MessageShape
from api_proc.anthropic.schema import FIELDS, CountRequest, MessageRequest
from api_proc.anthropic.translation import NAMES, chat_request
from api_proc.openai.chat import chat_task
from api_proc.openai.chat_format import ChatFormat
from api_proc.openai.response_task import generated, serve
from api_proc.openai.translation import fields_named, named
from api_proc.server.admission import Place
from api_proc.server.bodies import json_response
from api_proc.server.respond import ResponseTask
from api_proc.server.service import Service
from quartet.wire.frames import unpack_ids

decoder = msgspec.json.Decoder(MessageRequest)
count_decoder = msgspec.json.Decoder(CountRequest)


async def messages(request: web.Request) -> web.StreamResponse:
    """Answer a conversation by a message."""
    return await serve(request, decoder, message_task, named(NAMES, generated), FIELDS)


async def count_tokens(request: web.Request) -> web.StreamResponse:
    """Count the tokens of the prompt that a conversation makes."""
    return await serve(request, count_decoder, message_task, named(NAMES, _counted), FIELDS)


async def _counted(
    request: web.Request, service: Service, task: ResponseTask, place: Place, release: ExitStack
) -> web.StreamResponse:
    with service.open.one():
        encoded = await service.engine.encode(task.requests[0])
    return json_response({"input_tokens": len(unpack_ids(encoded.ids))})


def message_task(request: web.Request, service: Service, wanted: CountRequest) -> ResponseTask:
    """Check a request and return its task; raises RequestError with the field at fault."""
    chat, names = chat_request(wanted)
    with fields_named(names):
        return chat_task(request, service, chat, partial(_shape, wanted))


def _shape(wanted: CountRequest, service: Service, form: ChatFormat) -> MessageShape:
    return MessageShape(
        form,
        service.model_name,
        wanted.max_tokens if isinstance(wanted, MessageRequest) else 0,
        hides_thinking=wanted.thinking is not None and wanted.thinking.display == "omitted",
        manages_context=wanted.context_management is not None,
    )
