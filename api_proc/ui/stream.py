"""GET /ui/stream: the state of the engine as server-sent events, twice a second, while a page is open."""

import asyncio
import os
from typing import Any

import msgspec
import psutil
from aiohttp import web

from api_proc.native.loads import loads_of
from api_proc.openai.routing import visible_tenant
from api_proc.server.respond import STREAM_HEADERS
from api_proc.server.service import SERVICE, Service
from api_proc.ui.feed import FEED, INTERVAL_S
from quartet.version import __version__


async def stream(request: web.Request) -> web.StreamResponse:
    """Stream load, history, processes and live requests; with API keys only the requests of the same key.

    The first event has what does not change, and the history so far; each further one the points since then.
    """
    service, feed = request.app[SERVICE], request.app[FEED]
    tenant = visible_tenant(request, service)
    response = web.StreamResponse(headers=STREAM_HEADERS)
    await response.prepare(request)
    event: dict[str, Any] = {"server": _server(service)}
    seen = 0
    while not service.is_draining:
        points = feed.history.since(seen)
        seen = points[-1].number if points else seen
        event |= {
            "is_ready": service.engine.is_accepting,
            "load": next(iter(loads_of(service)), None),
            "points": points,
            "processes": feed.processes(),
            "requests": await feed.requests(tenant),
        }
        await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")
        event = {}
        await asyncio.sleep(INTERVAL_S)
    return response


def _server(service: Service) -> dict[str, Any]:
    """Return what does not change while the api process lives."""
    server = service.config.server
    return {
        "model": service.model_name,
        "version": __version__,
        "context_length": service.config.require_model().context_length,
        # The supervisor's start is that of the launch.
        "started_s": psutil.Process(os.getppid()).create_time(),
        "has_priorities": service.config.scheduler.enable_priority_scheduling,
        "policy": service.config.scheduler.schedule_policy,
        "is_demo": server.demo,
    }
