"""The routes that ask the scheduler: one request's timeline, a trace of all, the effective settings, a cache flush."""

import msgspec
from aiohttp import web

from api_proc.server.service import SERVICE
from quartet.wire.errors import RequestError


async def _asked(request: web.Request, what: str, argument: str = "") -> web.Response:
    body = await request.app[SERVICE].engine.ask(what, argument)
    answer = msgspec.json.decode(body)
    if isinstance(answer, dict) and "error" in answer:
        raise RequestError(404, "not_found", str(answer["error"]))
    return web.Response(body=body, content_type="application/json")


async def timeline(request: web.Request) -> web.Response:
    """Show what happened to a request, live or lately ended, by its id with or without the prefix of its answer."""
    rid = request.match_info["rid"].rpartition("-")[2].lower()
    return await _asked(request, "timeline", rid)


async def trace(request: web.Request) -> web.Response:
    """Give the timelines of all remembered requests as a Chrome/Perfetto trace."""
    return await _asked(request, "trace")


async def config(request: web.Request) -> web.Response:
    """Show the scheduler's settings with the values in force."""
    return await _asked(request, "config")


async def flush_cache(request: web.Request) -> web.Response:
    """Forget every cached prefix that nobody uses."""
    return await _asked(request, "flush")
