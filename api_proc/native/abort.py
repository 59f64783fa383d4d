"""POST /abort_request: ends requests by an id; SGLang's route."""

import msgspec
from aiohttp import web

from api_proc.openai.routing import visible_tenant
from api_proc.server.auth import IS_ADMIN
from api_proc.server.bodies import decode_body, read_body
from api_proc.server.errors import invalid
from api_proc.server.service import SERVICE
from quartet.wire.errors import RequestError

MAX_BODY_BYTES = 1 << 16


class AbortRequest(msgspec.Struct, kw_only=True):
    """Body: the id of an answer or the client's own of a request, or all requests."""

    rid: str | None = None
    abort_all: bool | None = None


_decoder = msgspec.json.Decoder(AbortRequest)


async def abort_request(request: web.Request) -> web.Response:
    """End the requests that are named: their answers end with an error. A client's key reaches its own requests only.

    All requests at once need an admin key, where there are admin keys.
    """
    service = request.app[SERVICE]
    body = await read_body(request, MAX_BODY_BYTES, service.timeouts.body_s, lambda held: None)
    wanted = decode_body(_decoder, body)
    if not wanted.rid and not wanted.abort_all:
        raise invalid("rid", "rid is required, or abort_all")
    if wanted.abort_all and service.config.server.admin_api_key and not request.get(IS_ADMIN, False):
        raise RequestError(403, "admin_key_required", "abort_all needs an admin key", "abort_all")
    name = "" if wanted.abort_all else wanted.rid or ""
    answer = await service.engine.query("abort", name, visible_tenant(request, service))
    return web.Response(body=answer, content_type="application/json")
