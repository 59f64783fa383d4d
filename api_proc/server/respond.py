"""ResponseTask -> response, streamed or whole; chat and completions share every line of it.

Whatever ends a handler early (refusal, disconnect, shutdown) leaves no request in the engine: each one that was started
is aborted on the way out unless it has finished.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
from aiohttp import web

from api_proc.server.access_log import PARAMS, USAGE, log_requests
from api_proc.server.admission import Place
from api_proc.server.engine_client import EngineClient, OutputStream
from api_proc.server.pipe import ResponsePipe
from api_proc.server.rendering import ChoiceOutput, Renderer, Shape
from api_proc.server.service import Service
from api_proc.server.sse import EventStream
from api_proc.server.usage import UsageCounter
from quartet.client.request import GenerateRequest, Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import ID_BYTES

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}

WORTH_TELLING_S = 0.005
"""How long after its last output a response may be written without the scheduler being told."""
MAX_SCORES = 1 << 20
"""Log-probabilities of the prompts of one response, alternatives included: some 100 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTask:
    """One HTTP request, parsed and checked: what to generate and how to write it.

    `requests` has one entry per prompt, each with `choices_each` choices. `resume_s` is how long a stream is to be
    kept without a reader; 0: it ends with its connection.
    """

    requests: Sequence[GenerateRequest]
    choices_each: int
    shape: Shape
    is_stream: bool
    include_usage: bool
    continuous_usage: bool
    resume_s: float = 0.0


async def respond(request: web.Request, service: Service, task: ResponseTask, place: Place) -> web.StreamResponse:
    """Return the finished response; raises RequestError as long as nothing has been sent."""
    start_s = service.clock.now()
    with service.open.one():
        outputs = await accepted(service, task, place)
        request[PARAMS] = task.requests[0].params
        # The prompts are not kept for the length of the answer.
        task = replace(task, requests=())
        usage = UsageCounter(
            [len(one.prompt_ids) for one in outputs],
            task.choices_each,
            start_s,
            service.clock,
            service.stats,
            place.on_output,
        )
        request[USAGE] = usage
        write = _stream if task.is_stream else _whole
        try:
            return await write(request, service, task, outputs, task.shape.renderer(outputs, task.choices_each), usage)
        except (asyncio.CancelledError, ConnectionError):
            if not usage.is_complete:
                service.stats.clients_closed += 1
                service.stats.finished["abort"] += 1
            raise
        finally:
            if not usage.is_complete:
                _abort_all(outputs)


async def accepted(service: Service, task: ResponseTask, place: Place) -> list[OutputStream]:
    """Return an output stream per request once the engine has accepted all; raises RequestError if it refuses one."""
    try:
        requests = [msgspec.structs.replace(one, accepted_s=place.since_s) for one in task.requests]
        outputs = await start_all(service.engine, requests)
        _check_scores(task, outputs)
    except RequestError as error:
        place.on_refused(error)
        raise
    place.on_accepted()
    log_requests(service.config.monitoring, task.requests, outputs)
    return outputs


def _check_scores(task: ResponseTask, outputs: Sequence[OutputStream]) -> None:
    """Refuse a request whose prompts have more log-probabilities, taken together, than an answer should hold."""
    alternatives = task.requests[0].params.prompt_logprobs
    if alternatives < 0:
        return
    tokens = task.choices_each * sum(len(output.encoded.ids) // ID_BYTES for output in outputs)
    limit = MAX_SCORES // (1 + alternatives)
    if tokens > limit:
        _abort_all(outputs)
        message = f"the prompts have {tokens} tokens in all choices; {alternatives} alternatives are given for {limit}"
        raise RequestError(400, "invalid_value", f"{message}. Send fewer prompts at once.", "prompt_logprobs")


async def start_all(engine: EngineClient, requests: Sequence[GenerateRequest]) -> list[OutputStream]:
    """Return an output stream per request once all are accepted; if one is refused, the others are aborted."""
    if len(requests) == 1:
        return [await engine.generate(requests[0])]
    started: dict[int, OutputStream] = {}

    async def start(index: int, request: GenerateRequest) -> None:
        started[index] = await engine.generate(request)

    try:
        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(requests):
                group.create_task(start(index, request))
    except BaseExceptionGroup as errors:
        _abort_all(list(started.values()))
        refused = errors.subgroup(RequestError)
        raise (refused or errors).exceptions[0] from None
    except asyncio.CancelledError:
        _abort_all(list(started.values()))
        raise
    return [started[index] for index in range(len(requests))]


async def _stream(
    request: web.Request,
    service: Service,
    task: ResponseTask,
    outputs: Sequence[OutputStream],
    renderer: Renderer,
    usage: UsageCounter,
) -> web.StreamResponse:
    response = web.StreamResponse(headers=STREAM_HEADERS)
    pipe = ResponsePipe(request)
    stream = EventStream(
        pipe,
        renderer,
        usage,
        service,
        abort=partial(_abort_all, outputs),
        include_usage=task.include_usage,
        continuous_usage=task.continuous_usage,
    )
    for index, output in enumerate(outputs):
        output.subscribe(partial(stream.on_outputs, index * task.choices_each), stream.on_error)
    stream.raise_early_error()
    await response.prepare(request)
    stream.begin()
    await stream.serve()
    await end_stream(response, pipe, service.timeouts.stall_s)
    writing_s = service.clock.now() - usage.last_s
    if usage.is_complete and writing_s > WORTH_TELLING_S:
        for output in outputs:
            service.engine.note_written(output.rid, writing_s)
    return response


async def end_stream(response: web.StreamResponse, pipe: ResponsePipe, limit_s: float) -> None:
    """Write the last chunk; the connection of a client that does not read it in time is closed."""
    try:
        async with asyncio.timeout(limit_s):
            await response.write_eof()
    except TimeoutError:
        pipe.kill()
        raise ConnectionResetError("the client does not read") from None


async def _whole(
    request: web.Request,
    service: Service,
    task: ResponseTask,
    outputs: Sequence[OutputStream],
    renderer: Renderer,
    usage: UsageCounter,
) -> web.StreamResponse:
    collector = Collector(usage)
    for index, output in enumerate(outputs):
        output.subscribe(partial(collector.on_outputs, index * task.choices_each), collector.on_error)
    choices = await collector.done
    usage.close()
    body = renderer.whole(choices, usage.usage(), usage.timings())
    return web.Response(body=body, content_type="application/json")


def _abort_all(outputs: Sequence[OutputStream]) -> None:
    for output in outputs:
        output.abort()


class Collector:
    """Gathers all output of a task; `done` gives the choices or raises the RequestError."""

    def __init__(self, usage: UsageCounter) -> None:
        self._usage = usage
        self._choices = [ChoiceOutput() for _ in usage.counts]
        self.done: asyncio.Future[list[ChoiceOutput]] = asyncio.get_running_loop().create_future()

    def on_outputs(self, base: int, outputs: list[Output]) -> None:
        """Take one increment of the prompt whose first choice is `base`."""
        if self.done.done():
            return
        self._usage.add(base, outputs)
        for output in outputs:
            self._choices[base + output.choice].add(output)
        if self._usage.is_complete:
            self.done.set_result(self._choices)

    def on_error(self, error: RequestError) -> None:
        """End the wait with an error."""
        if not self.done.done():
            self.done.set_exception(error)
