"""POST /v1/completions: body -> Job. One generation per prompt, its choices numbered through."""

from collections.abc import Sequence
from typing import cast

import msgspec
from aiohttp import web

from api_proc.openai import routing
from api_proc.openai.completion_rendering import CompletionRenderer
from api_proc.openai.params import MAX_INT32, MAX_TOP_LOGPROBS, choices_wanted, sampling_params, whole
from api_proc.openai.schema import CompletionRequest
from api_proc.openai.unsupported import refuse_unsupported
from api_proc.server.bodies import decode_body, read_body
from api_proc.server.errors import draining, invalid
from api_proc.server.respond import Job, answer
from api_proc.server.service import SERVICE, OutputStream, Service
from quartet.client.engine import GenerateRequest
from quartet.wire.errors import RequestError
from quartet.wire.frames import IdsPrompt, SamplingParams, TextPrompt, pack_ids

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES = 512
"""Bound on prompts times n of one request."""

decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts."""
    service = request.app[SERVICE]
    if service.is_draining:
        raise draining()
    body = await read_body(request, service.config.server.max_body_bytes, service.timeouts.body_s)
    return await answer(request, service, completion_job(request, service, decode_body(decoder, body)))


def completion_job(request: web.Request, service: Service, wanted: CompletionRequest) -> Job:
    """Check a request and return what to do; raises RequestError with the field at fault."""
    routing.check_model(service, wanted.model)
    refuse_unsupported(wanted)
    options = wanted.stream_options
    choices = choices_wanted(wanted.n)
    prompts = _prompts(service, wanted)
    if len(prompts) * choices > MAX_CHOICES:
        raise invalid("prompt", f"prompts times n must not exceed {MAX_CHOICES}")
    max_tokens, logprobs = _max_tokens(wanted), _logprobs(wanted)
    requests = [
        GenerateRequest(
            prompt=prompt,
            # Each prompt resolves its own parameters, so that drawn seeds differ.
            params=_params(service, wanted, max_tokens, logprobs),
            n=choices,
            priority=routing.priority(request, wanted),
            tenant=routing.tenant(request, service),
            cache_salt=routing.cache_salt(wanted),
            routing_key=routing.routing_key(wanted),
            weight=routing.weight(wanted),
            deadline_s=routing.deadline_s(request, wanted),
        )
        for prompt in prompts
    ]
    created, model = int(service.wall_time()), service.model_name

    def renderer(made: Sequence[OutputStream]) -> CompletionRenderer:
        echoes = _echoes(prompts, made, choices) if wanted.echo else [""] * (len(made) * choices)
        return CompletionRenderer(f"cmpl-{made[0].rid.hex()}", created, model, echoes)

    return Job(
        requests=requests,
        choices_each=choices,
        renderer=renderer,
        is_stream=bool(wanted.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.include_usage and options.continuous_usage_stats),
    )


def _echoes(prompts: Sequence[TextPrompt | IdsPrompt], made: Sequence[OutputStream], choices: int) -> list[str]:
    texts = [
        prompt.text if isinstance(prompt, TextPrompt) else output.prompt_text
        for prompt, output in zip(prompts, made, strict=True)
    ]
    return [text for text in texts for _ in range(choices)]


def _prompts(service: Service, wanted: CompletionRequest) -> list[TextPrompt | IdsPrompt]:
    given, is_echoed = wanted.prompt, bool(wanted.echo)
    if isinstance(given, str):
        return [_text(given)]
    if not given:
        raise invalid("prompt", "prompt must not be empty")
    if len(given) > MAX_CHOICES and not isinstance(given[0], int):
        raise invalid("prompt", f"prompt has more than {MAX_CHOICES} entries")
    # One pass at the speed of C: a prompt of ids may be long, and many may open at once.
    kinds = set(map(type, given))
    if kinds == {int}:
        return [_ids(service, cast(list[int], given), is_echoed)]
    if kinds == {str}:
        return [_text(one) for one in cast(list[str], given)]
    if kinds == {list}:
        return [_ids(service, one, is_echoed) for one in cast(list[list[int]], given)]
    raise invalid("prompt", "prompt must be a string, strings, token ids, or lists of token ids, and not a mixture")


def _text(text: str) -> TextPrompt:
    if not text:
        raise invalid("prompt", "prompt must not be empty")
    return TextPrompt(text)


def _ids(service: Service, ids: list[int], is_echoed: bool) -> IdsPrompt:
    model = service.config.require_model()
    if not ids:
        raise invalid("prompt", "prompt must not be empty")
    if len(ids) > model.context_length:
        raise RequestError(
            400,
            "context_length_exceeded",
            f"this model's maximum context length is {model.context_length} tokens, the prompt has {len(ids)}",
            "prompt",
        )
    if min(ids) < 0 or max(ids) >= model.vocab_size:
        raise invalid("prompt", f"token ids must be between 0 and {model.vocab_size - 1}")
    return IdsPrompt(pack_ids(ids), is_echoed)


def _params(service: Service, wanted: CompletionRequest, max_new_tokens: int, logprobs: int) -> SamplingParams:
    model = service.config.require_model()
    return sampling_params(
        wanted,
        max_new_tokens=max_new_tokens,
        logprobs=logprobs,
        defaults=model.default_sampling,
        vocab_size=model.vocab_size,
        draw_seed=service.draw_seed,
    )


def _max_tokens(wanted: CompletionRequest) -> int:
    given = wanted.max_tokens
    return DEFAULT_MAX_TOKENS if given is None else whole("max_tokens", given, 0, MAX_INT32)


def _logprobs(wanted: CompletionRequest) -> int:
    return -1 if wanted.logprobs is None else whole("logprobs", wanted.logprobs, 0, MAX_TOP_LOGPROBS)
