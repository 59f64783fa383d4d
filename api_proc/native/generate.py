"""POST /generate: SGLang's native route for text or ids, one or many."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from api_proc.native.generate_fields import (
    DEFAULT_MAX_NEW_TOKENS,
    IN_BODY,
    IN_SAMPLING_PARAMS,
    NAMES,
    GenerateBody,
    NativeSampling,
    sampling_fields,
)
from api_proc.native.generate_rendering import GenerateShape
from api_proc.openai.completions import check_ids
from api_proc.openai.models import check_model
from api_proc.openai.other_fields import check_names
from api_proc.openai.params import MAX_INT32, check_range
from api_proc.openai.response_task import MAX_CHOICES, response_task, serve
from api_proc.openai.structured import check_end, constraint
from api_proc.server import request_ids
from api_proc.server.bodies import decode_body
from api_proc.server.errors import invalid
from api_proc.server.respond import ResponseTask
from api_proc.server.service import Service
from quartet.wire.errors import RequestError
from quartet.wire.frames import IdsPrompt, TextPrompt, pack_ids
from quartet.wire.sampling_bounds import MAX_TOP_LOGPROBS

decoder = msgspec.json.Decoder(GenerateBody)
_sampling = msgspec.json.Decoder(NativeSampling)


async def generate(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts."""
    return await serve(request, decoder, generate_task, fields=IN_BODY)


def generate_task(request: web.Request, service: Service, body: GenerateBody) -> ResponseTask:
    """Check a request and return its task; raises RequestError with the field at fault."""
    check_model(service, body.model)
    prompts, is_list = _prompts(service, body)
    samplings = _samplings(service, body, len(prompts))
    logprobs = _logprobs(body)
    names = _names(request, body, len(prompts))
    is_list = is_list or bool((samplings[0].n or 1) > 1)
    start = _start(body) if logprobs >= 0 else -1
    shape = GenerateShape(names, is_list, logprobs, bool(body.return_text_in_logprobs), start)
    tasks = [
        _task_of(request, service, body, prompt, sampling, logprobs, shape)
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    requests = [
        msgspec.structs.replace(one, request_id=name) if name else one
        for (one,), name in zip((task.requests for task in tasks), names, strict=True)
    ]
    return replace(tasks[0], requests=requests)


def _task_of(
    request: web.Request,
    service: Service,
    body: GenerateBody,
    prompt: TextPrompt | IdsPrompt,
    sampling: NativeSampling,
    logprobs: int,
    shape: GenerateShape,
) -> ResponseTask:
    """Return the task of one prompt; an error names the field as this route does."""
    most = DEFAULT_MAX_NEW_TOKENS if sampling.max_new_tokens is None else sampling.max_new_tokens
    fields = sampling_fields(sampling, body)
    try:
        check_range("max_tokens", most, 0, MAX_INT32)
        grammar = constraint(fields)
        check_end(fields, grammar)
        task = response_task(
            request,
            service,
            fields,
            [prompt],
            max_new_tokens=most,
            logprobs=logprobs,
            shape=shape,
            prompt_logprobs=logprobs if shape.start >= 0 else -1,
            grammar=grammar,
        )
    except RequestError as error:
        raise _renamed(error) from None
    # Its events are not numbered: a stream of this route ends with its connection.
    return replace(task, resume_s=0.0)


def _renamed(error: RequestError) -> RequestError:
    """Return an error with the native name of its field."""
    for name, theirs in NAMES.items():
        if error.param == theirs:
            message = error.message.replace(theirs, name)
            return RequestError(error.status, error.code, message, f"sampling_params.{name}", error.retry_after_s)
    if error.param in NativeSampling.__struct_fields__:
        error.param = f"sampling_params.{error.param}"
    return error


def _prompts(service: Service, body: GenerateBody) -> tuple[Sequence[TextPrompt | IdsPrompt], bool]:
    """Return the prompts, and whether they were given as a list."""
    if (body.text is None) == (body.input_ids is None):
        raise invalid("text", "exactly one of text and input_ids is required")
    if body.text is not None:
        is_list = isinstance(body.text, list)
        texts: list[Any] = body.text if isinstance(body.text, list) else [body.text]
        _check_count("text", texts)
        return [TextPrompt(text) for text in texts], is_list
    ids: list[Any] = body.input_ids or []
    kinds = set(map(type, ids))
    if len(kinds) > 1:
        raise invalid("input_ids", "input_ids must be token ids, or lists of token ids, and not a mixture")
    is_list = kinds == {list}
    rows = ids if is_list else [ids]
    _check_count("input_ids", rows)
    for row in rows:
        check_ids(service.config.require_model(), row, "input_ids")
    return [IdsPrompt(pack_ids(row)) for row in rows], is_list


def _check_count(name: str, prompts: list[Any]) -> None:
    if not prompts or not all(prompts):
        raise invalid(name, f"{name} must not be empty")
    if len(prompts) > MAX_CHOICES:
        raise invalid(name, f"{name} has more than {MAX_CHOICES} entries")


def _samplings(service: Service, body: GenerateBody, count: int) -> list[NativeSampling]:
    """Return the parameters of each prompt; raises RequestError 400."""
    given = body.sampling_params
    if given is None:
        return [NativeSampling()] * count
    if not isinstance(given, list):
        return [_sampling_of(service, given)] * count
    _check_length("sampling_params", given, count)
    found = [_sampling_of(service, one) for one in given]
    if len({one.n or 1 for one in found}) > 1:
        raise invalid("sampling_params", "n must be the same in all sampling_params")
    return found


def _sampling_of(service: Service, given: Any) -> NativeSampling:
    body = msgspec.json.encode(given)
    try:
        found = decode_body(_sampling, body)
        check_names(body, NativeSampling, service.unknown_names, IN_SAMPLING_PARAMS)
    except RequestError as error:
        error.param = f"sampling_params.{error.param}" if error.param else "sampling_params"
        raise
    return found


def _check_length(name: str, given: list[Any], count: int) -> None:
    if len(given) != count:
        raise invalid(name, f"{name} has {len(given)} entries for {count} prompts")


def _logprobs(body: GenerateBody) -> int:
    """Return the number of alternatives of each token, -1 for no log-probabilities; the same for all prompts."""
    wanted: Any = _one_for_all("return_logprob", body.return_logprob)
    most: Any = _one_for_all("top_logprobs_num", body.top_logprobs_num)
    check_range("top_logprobs_num", most or 0, 0, MAX_TOP_LOGPROBS)
    return (most or 0) if wanted else -1


def _start(body: GenerateBody) -> int:
    """Return the position of the prompt from which its tokens have log-probabilities, -1 for none of them."""
    start: Any = _one_for_all("logprob_start_len", body.logprob_start_len)
    check_range("logprob_start_len", -1 if start is None else start, -1, MAX_INT32)
    return -1 if start is None else start


def _one_for_all(name: str, given: Any) -> Any:
    if not isinstance(given, list):
        return given
    if len(set(given)) > 1:
        raise invalid(name, f"{name} must be the same for all prompts")
    return given[0] if given else None


def _names(request: web.Request, body: GenerateBody, count: int) -> list[str]:
    """Return the client's id of each prompt: one that it has given for several is numbered."""
    if not body.rid:
        return [""] * count
    if isinstance(body.rid, list):
        _check_length("rid", body.rid, count)
        if len(set(body.rid)) < count:
            raise invalid("rid", "rid must have a different id for each prompt")
        for rid in body.rid:
            request_ids.check("rid", rid)
        return body.rid
    request_ids.take(request, rid=body.rid)
    return [body.rid] if count == 1 else [f"{body.rid}_{index}" for index in range(count)]
