"""The HTTP side of recorded responses: the first connection, which asks for one, and those that read on."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import msgspec
from aiohttp import web

from api_proc.server.access_log import PARAMS, USAGE
from api_proc.server.admission import Place
from api_proc.server.engine_client import OutputStream
from api_proc.server.event_ids import EventIds
from api_proc.server.pipe import ResponsePipe
from api_proc.server.respond import STREAM_HEADERS, ResponseTask, accepted, end_stream
from api_proc.server.resume.log_reader import LogReader
from api_proc.server.resume.recording import Recording
from api_proc.server.resume.records import Begun, RecordedPrompt
from api_proc.server.service import Service
from api_proc.server.sse import EventStream
from api_proc.server.usage import ReaderUsage
from quartet.wire.frames import IdsPrompt

RESUME = "X-Quartet-Resume"


async def respond_recorded(
    request: web.Request, service: Service, task: ResponseTask, place: Place, release: ExitStack
) -> web.StreamResponse:
    """Stream a response that survives its connection; `release` gives back `place`, now when the response ends."""
    start_s = service.clock.now()
    with service.open.one():
        first, *others = task.requests
        first = msgspec.structs.replace(first, rid=service.siblings.new_stream())
        task = replace(task, requests=[first, *others])
        outputs = await accepted(service, task, place)
        begun = _begun(task, outputs, place.tenant, start_s)
        recording = service.recordings.begin(begun, task.shape, outputs, release.pop_all(), place.on_output)
        del task, first, others, outputs, begun
        return await show(request, service, recording, None)


async def show(request: web.Request, service: Service, recording: Recording, seen: int | None) -> web.StreamResponse:
    """Stream a recorded response from the event after number `seen` on, or from its beginning."""
    begun = recording.begun
    headers = {RESUME: f"{begun.window_s:g}", "Content-Location": f"/v1/streams/{begun.stream.hex()}"}
    response = web.StreamResponse(headers=STREAM_HEADERS | headers)
    try:
        pipe = ResponsePipe(request)
        stream = _reader(pipe, service, recording, seen)
        recording.reader = stream
        request[USAGE], request[PARAMS] = recording.usage, begun.prompts[0].request.params
        if recording.error is not None:
            if not recording.log:
                raise recording.error
            stream.on_error(recording.error)
        await response.prepare(request)
        stream.begin()
        await stream.serve()
        await end_stream(response, pipe, service.timeouts.stall_s)
        return response
    except (asyncio.CancelledError, ConnectionError):
        service.stats.clients_closed += not recording.is_over
        raise
    finally:
        service.recordings.leave(recording)


def _reader(pipe: ResponsePipe, service: Service, recording: Recording, seen: int | None) -> EventStream:
    usage = ReaderUsage(recording.usage)
    return EventStream(
        pipe,
        recording.renderer(),
        usage,
        service,
        # A connection that ends is noticed where it is served.
        abort=lambda: None,
        include_usage=recording.begun.include_usage,
        continuous_usage=recording.begun.continuous_usage,
        backlog=LogReader(recording, usage),
        ids=EventIds(recording.begun.stream, seen),
    )


def _begun(task: ResponseTask, outputs: Sequence[OutputStream], owner: str, start_s: float) -> Begun:
    """Return the record with which the response begins."""
    prompts = []
    for request, output in zip(task.requests, outputs, strict=True):
        encoded = output.encoded
        prompts.append(
            RecordedPrompt(
                output.rid,
                msgspec.structs.replace(request, prompt=IdsPrompt(b"")),
                encoded if task.shape.is_echoed else msgspec.structs.replace(encoded, text=""),
            )
        )
    return Begun(
        stream=outputs[0].rid,
        owner=owner,
        window_s=task.resume_s,
        start_s=start_s,
        shape=msgspec.Raw(msgspec.msgpack.encode(task.shape)),
        include_usage=task.include_usage,
        continuous_usage=task.continuous_usage,
        choices_each=task.choices_each,
        prompts=prompts,
    )
