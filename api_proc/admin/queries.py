"""Routes that query the scheduler: one request's timeline, a trace of all, the effective settings, a cache flush."""

import msgspec
from aiohttp import web

from api_proc.openai.routing import visible_tenant
from api_proc.server.service import SERVICE
from quartet.wire.errors import RequestError


async def _query(request: web.Request, what: str, argument: str = "", tenant: str | None = None) -> web.Response:
    body = await request.app[SERVICE].engine.query(what, argument, tenant)
    reply = msgspec.json.decode(body)
    if isinstance(reply, dict) and "error" in reply:
        raise RequestError(404, "not_found", str(reply["error"]))
    return web.Response(body=body, content_type="application/json")


async def timeline(request: web.Request) -> web.Response:
    """Show what happened to a live or recent request, by the id of its answer or by the client's own id."""
    tenant = visible_tenant(request, request.app[SERVICE])
    return await _query(request, "timeline", request.match_info["rid"], tenant)


async def trace(request: web.Request) -> web.Response:
    """Give the timelines of all remembered requests as a Chrome/Perfetto trace."""
    return await _query(request, "trace")


async def config(request: web.Request) -> web.Response:
    """Show the scheduler's settings with the values in force."""
    return await _query(request, "config")


async def flush_cache(request: web.Request) -> web.Response:
    """Evict every cached prefix that no request uses."""
    return await _query(request, "flush")
