"""Carries an accepted request to its answer, streamed or whole; chat and completions share every line of it.

Whatever ends a handler early (refusal, disconnect, shutdown) leaves no generation behind: each one that was started
is aborted on the way out unless it has finished.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from api_proc.pipe import ResponsePipe
from api_proc.rendering import ChoiceOutput, Renderer
from api_proc.service import EngineClient, Generation, Service
from api_proc.sse import EventStream
from api_proc.tally import Tally
from quartet.engine import GenerateRequest, Output
from quartet.errors import RequestError

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One HTTP request, checked: what to generate and how to write it.

    `requests` has one entry per prompt, each with `choices_each` choices. `renderer` is called once all of them are
    accepted.
    """

    requests: Sequence[GenerateRequest]
    choices_each: int
    renderer: Callable[[Sequence[Generation]], Renderer]
    is_stream: bool
    include_usage: bool
    continuous_usage: bool


async def answer(request: web.Request, service: Service, job: Job) -> web.StreamResponse:
    """Return the finished response; raises RequestError as long as nothing has been sent."""
    start_s = service.clock.now()
    with service.open.one():
        generations = await start_all(service.engine, job.requests)
        tally = Tally(
            [len(one.prompt_ids) for one in generations], job.choices_each, start_s, service.clock, service.stats
        )
        abort = partial(_abort_all, generations)
        try:
            renderer = job.renderer(generations)
            if job.is_stream:
                return await _stream(request, service, job, generations, renderer, tally)
            return await _whole(job, generations, renderer, tally)
        except (asyncio.CancelledError, ConnectionError):
            service.stats.clients_closed += not tally.is_complete
            raise
        finally:
            if not tally.is_complete:
                abort()


async def start_all(engine: EngineClient, requests: Sequence[GenerateRequest]) -> list[Generation]:
    """Return a generation per request once all are accepted; if one is refused, the others are aborted."""
    if len(requests) == 1:
        return [await engine.generate(requests[0])]
    started: dict[int, Generation] = {}

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
    job: Job,
    generations: Sequence[Generation],
    renderer: Renderer,
    tally: Tally,
) -> web.StreamResponse:
    response = web.StreamResponse(headers=STREAM_HEADERS)
    pipe = ResponsePipe(request)
    stream = EventStream(
        pipe,
        renderer,
        tally,
        service,
        abort=partial(_abort_all, generations),
        include_usage=job.include_usage,
        continuous_usage=job.continuous_usage,
    )
    for index, generation in enumerate(generations):
        generation.subscribe(partial(stream.on_outputs, index * job.choices_each), stream.on_error)
    stream.raise_early_error()
    await response.prepare(request)
    stream.begin()
    await stream.serve()
    await _end(response, pipe, service.patience.stall_s)
    return response


async def _end(response: web.StreamResponse, pipe: ResponsePipe, limit_s: float) -> None:
    """Write the last chunk; a reader that does not take it in time is cut off."""
    try:
        async with asyncio.timeout(limit_s):
            await response.write_eof()
    except TimeoutError:
        pipe.kill()
        raise ConnectionResetError("the client does not read") from None


async def _whole(job: Job, generations: Sequence[Generation], renderer: Renderer, tally: Tally) -> web.Response:
    collector = Collector(tally)
    for index, generation in enumerate(generations):
        generation.subscribe(partial(collector.on_outputs, index * job.choices_each), collector.on_error)
    choices = await collector.done
    tally.close()
    body = renderer.whole(choices, tally.usage(), tally.timings())
    return web.Response(body=body, content_type="application/json")


def _abort_all(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.abort()


class Collector:
    """Gathers a whole answer; `done` gives the choices or raises the RequestError."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._choices = [ChoiceOutput() for _ in tally.counts]
        self.done: asyncio.Future[list[ChoiceOutput]] = asyncio.get_running_loop().create_future()

    def on_outputs(self, base: int, outputs: list[Output]) -> None:
        """Take one increment of the prompt whose first choice is `base`."""
        if self.done.done():
            return
        self._tally.add(base, outputs)
        for output in outputs:
            self._choices[base + output.choice].add(output.text, output.logprobs, output.finish)
        if self._tally.is_complete:
            self.done.set_result(self._choices)

    def on_error(self, error: RequestError) -> None:
        """End the wait with an error."""
        if not self.done.done():
            self.done.set_exception(error)
