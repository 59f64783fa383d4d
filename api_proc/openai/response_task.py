"""What the two generating routes share: HTTP request -> body -> ResponseTask -> response."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import TypeVar

import msgspec
from aiohttp import web

from api_proc.openai.annotations import annotated
from api_proc.openai.chat_rendering import ChatShape
from api_proc.openai.completion_rendering import CompletionShape
from api_proc.openai.other_fields import OPENAI, FieldTable, check_names
from api_proc.openai.params import check_range, sampling_params
from api_proc.openai.parsed_rendering import ParsedChatShape
from api_proc.openai.routing import generate_request, priority_of, tenant_of
from api_proc.openai.schema import SamplingFields, StreamOptions
from api_proc.openai.streams import resume_window_s
from api_proc.openai.tiers import tier_in_force
from api_proc.server.admission import Place
from api_proc.server.bodies import decode_body, read_body
from api_proc.server.errors import draining, invalid
from api_proc.server.rendering import Shape
from api_proc.server.respond import ResponseTask, respond
from api_proc.server.resume.serving import respond_recorded
from api_proc.server.service import SERVICE, Service
from quartet.wire.frames import ChatPrompt, Grammar, IdsPrompt, Marker, TextPrompt
from quartet.wire.sampling_bounds import MAX_TOP_LOGPROBS

MAX_N = 16
MAX_CHOICES = 512
"""Bound on prompts times n of one request."""

Body = TypeVar("Body", bound=msgspec.Struct)
Answer = Callable[[web.Request, Service, ResponseTask, Place, ExitStack], Awaitable[web.StreamResponse]]


def generated(
    request: web.Request, service: Service, task: ResponseTask, place: Place, release: ExitStack
) -> Awaitable[web.StreamResponse]:
    """Return the response with what is generated."""
    if task.resume_s:
        return respond_recorded(request, service, task, place, release)
    return respond(request, service, task, place)


async def serve(
    request: web.Request,
    decoder: "msgspec.json.Decoder[Body]",
    make_task: Callable[[web.Request, Service, Body], ResponseTask],
    answer: Answer = generated,
    fields: FieldTable = OPENAI,
) -> web.StreamResponse:
    """Read a request's body, make it a task, and return the response to it; `fields` are refused by name."""
    service = request.app[SERVICE]
    if service.is_draining:
        raise draining()
    with ExitStack() as release:
        place = release.enter_context(service.admission.enter(tenant_of(request, service)))
        # No name here may keep the body or the prompts for the length of the answer.
        task = _read_task(request, service, decoder, make_task, fields, place)
        return await answer(request, service, await task, place, release)


async def _read_task(
    request: web.Request,
    service: Service,
    decoder: "msgspec.json.Decoder[Body]",
    make_task: Callable[[web.Request, Service, Body], ResponseTask],
    fields: FieldTable,
    place: Place,
) -> ResponseTask:
    body = await read_body(request, service.max_body_bytes, service.timeouts.body_s, place.hold)
    wanted = decode_body(decoder, body)
    check_names(body, type(wanted), service.unknown_names, fields)
    task = make_task(request, service, wanted)
    place.claim(len(task.requests) * task.choices_each, task.requests[0].priority)
    return task


def response_task(
    request: web.Request,
    service: Service,
    fields: SamplingFields,
    prompts: Sequence[TextPrompt | IdsPrompt | ChatPrompt],
    *,
    max_new_tokens: int | None,
    logprobs: int,
    shape: Shape,
    prompt_logprobs: int = -1,
    grammar: Grammar | None = None,
    markers: tuple[Marker, ...] = (),
) -> ResponseTask:
    """Return the task of a request whose prompts have been read; raises RequestError with the field at fault.

    `max_new_tokens`, `logprobs` and `grammar` are read by the route, where chat and completions differ.
    `prompt_logprobs` are for an echo of the prompt, beside those of the field. `markers` are what the parsers of the
    output look for.
    """
    n = 1 if fields.n is None else fields.n
    check_range("n", n, 1, MAX_N)
    if len(prompts) * n > MAX_CHOICES:
        raise invalid("prompt", f"prompts times n must not exceed {MAX_CHOICES}")
    tiered = _tiered(shape, tier_in_force(fields.service_tier, priority_of(request, fields), service.config.scheduler))
    model, options = service.config.require_model(), fields.stream_options or StreamOptions()
    scores = -1
    if fields.prompt_logprobs is not None:
        check_range("prompt_logprobs", fields.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        scores = fields.prompt_logprobs
    requests = []
    for prompt in prompts:
        # Each prompt resolves its own parameters, so that drawn seeds differ.
        params = sampling_params(fields, model, service.draw_seed, max_new_tokens, logprobs, grammar)
        if markers or scores >= 0 or prompt_logprobs >= 0:
            params = msgspec.structs.replace(params, markers=markers, prompt_logprobs=max(scores, prompt_logprobs))
        requests.append(generate_request(request, service, fields, prompt, params, n))
    return ResponseTask(
        requests=requests,
        choices_each=n,
        shape=annotated(tiered, bool(fields.return_token_ids), scores),
        is_stream=bool(fields.stream),
        include_usage=bool(options.include_usage),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        resume_s=resume_window_s(request, service, bool(fields.stream)),
    )


def _tiered(shape: Shape, tier: str) -> Shape:
    """Return `shape` with the tier that the answer names, if it is of a route that has a place for it."""
    if tier and isinstance(shape, ChatShape | ParsedChatShape | CompletionShape):
        return msgspec.structs.replace(shape, service_tier=tier)
    return shape
