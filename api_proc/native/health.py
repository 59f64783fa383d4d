"""GET /health_generate: whether the whole engine works, shown by a token that it generates."""

import asyncio

from aiohttp import web

from api_proc.server.bodies import json_response
from api_proc.server.service import SERVICE, Service
from quartet.client.request import GenerateRequest, Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids

LIMIT_S = 20.0


async def health_generate(request: web.Request) -> web.Response:
    """Generate one token: 200 when it has come, 503 if it does not within LIMIT_S or the engine refuses it."""
    service = request.app[SERVICE]
    if service.is_draining:
        return json_response({"status": "draining"}, 503)
    try:
        async with asyncio.timeout(LIMIT_S):
            await _one_token(service)
    except TimeoutError:
        return json_response({"status": "no token within the limit", "limit_s": LIMIT_S}, 503)
    except RequestError as error:
        return json_response({"status": error.code, "message": error.message}, 503)
    return json_response({"status": "ok"})


async def _one_token(service: Service) -> None:
    """Return once a token has been generated; raises RequestError. It waits in the queue like any other request."""
    bos = service.config.require_model().bos_token_id or 0
    params = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)
    stream = await service.engine.generate(GenerateRequest(prompt=IdsPrompt(pack_ids([bos])), params=params))
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_output(outputs: list[Output]) -> None:
        if not ended.done() and any(output.finish is not None for output in outputs):
            ended.set_result(None)

    def on_error(error: RequestError) -> None:
        if not ended.done():
            ended.set_exception(error)

    try:
        stream.subscribe(on_output, on_error)
        await ended
    finally:
        stream.abort()
