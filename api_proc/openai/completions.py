"""POST /v1/completions: body -> ResponseTask. One output stream per prompt, its choices numbered through."""

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from api_proc.openai.completion_rendering import CompletionShape
from api_proc.openai.models import check_model
from api_proc.openai.params import MAX_INT32, check_range
from api_proc.openai.response_task import MAX_CHOICES, response_task, serve
from api_proc.openai.schema import CompletionRequest
from api_proc.openai.structured import constraint
from api_proc.openai.unsupported import refuse_unsupported
from api_proc.server.errors import invalid
from api_proc.server.respond import ResponseTask
from api_proc.server.service import Service
from quartet.wire.config import ResolvedModel
from quartet.wire.frames import IdsPrompt, TextPrompt, pack_ids
from quartet.wire.lengths import context_length_exceeded
from quartet.wire.sampling_bounds import MAX_TOP_LOGPROBS

DEFAULT_MAX_TOKENS = 16

decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts."""
    return await serve(request, decoder, completion_task)


def completion_task(request: web.Request, service: Service, wanted: CompletionRequest) -> ResponseTask:
    """Check a request and return its task; raises RequestError with the field at fault."""
    check_model(service, wanted.model)
    refuse_unsupported(wanted)
    prompts = _prompts(service.config.require_model(), wanted)
    max_tokens = DEFAULT_MAX_TOKENS if wanted.max_tokens is None else wanted.max_tokens
    check_range("max_tokens", max_tokens, 0, MAX_INT32)
    if wanted.logprobs is not None:
        check_range("logprobs", wanted.logprobs, 0, MAX_TOP_LOGPROBS)
    logprobs = -1 if wanted.logprobs is None else wanted.logprobs
    shape = CompletionShape(int(service.wall_time()), service.model_name, bool(wanted.echo), logprobs)
    return response_task(
        request,
        service,
        wanted,
        prompts,
        max_new_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=logprobs if wanted.echo else -1,
        shape=shape,
        grammar=constraint(wanted),
    )


def _prompts(model: ResolvedModel, wanted: CompletionRequest) -> Sequence[TextPrompt | IdsPrompt]:
    """Return the prompts: a string, strings, the ids of one prompt, or a list of ids for each."""
    given: list[Any] = [wanted.prompt] if isinstance(wanted.prompt, str) else wanted.prompt
    # One pass at the speed of C: a prompt of ids may be long, and many may come at once.
    kinds = set(map(type, given))
    if kinds == {int}:
        given, kinds = [given], {list}
    if len(given) > MAX_CHOICES:
        raise invalid("prompt", f"prompt has more than {MAX_CHOICES} entries")
    if len(kinds) > 1:
        raise invalid("prompt", "prompt must be a string, strings, token ids, or lists of token ids, and not a mixture")
    if not given or not all(given):
        raise invalid("prompt", "prompt must not be empty")
    if kinds == {str}:
        return [TextPrompt(text, wanted.add_special_tokens is not False) for text in given]
    for ids in given:
        check_ids(model, ids)
    return [IdsPrompt(pack_ids(ids), bool(wanted.echo)) for ids in given]


def check_ids(model: ResolvedModel, ids: list[int], param: str = "prompt") -> None:
    """Raise RequestError 400, naming the field, for more ids than the context holds, and for ids of no token."""
    if len(ids) > model.context_length:
        raise context_length_exceeded(model.context_length, len(ids), param)
    if min(ids) < 0 or max(ids) >= model.vocab_size:
        raise invalid(param, f"token ids must be between 0 and {model.vocab_size - 1}")
