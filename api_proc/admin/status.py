"""The routes that describe the service: liveness, readiness, the process table, metrics."""

from typing import Any

from aiohttp import web

from api_proc.admin.metrics import CONTENT_TYPE, exposition
from api_proc.server.bodies import json_response
from api_proc.server.service import SERVICE
from quartet.version import __version__
from quartet.wire.frames import ProcessStatus


async def index(request: web.Request) -> web.Response:
    """Name the server and its version."""
    return json_response({"name": "quartet", "version": __version__, "api": "/v1"})


async def health(request: web.Request) -> web.Response:
    """Liveness: 503 until the engine was ready for the first time, then 200 as long as the service runs."""
    is_alive = request.app[SERVICE].engine.is_alive
    return json_response({"status": "ok" if is_alive else "starting"}, 200 if is_alive else 503)


async def ready(request: web.Request) -> web.Response:
    """Readiness: 200 only while every role is up and requests are taken."""
    service = request.app[SERVICE]
    if service.is_draining:
        return json_response({"status": "draining"}, 503)
    is_ready = service.engine.is_accepting
    return json_response({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)


async def topology(request: web.Request) -> web.Response:
    """Show the process table."""
    return json_response({"processes": [*map(process_row, request.app[SERVICE].engine.process_table.processes)]})


def process_row(one: ProcessStatus) -> dict[str, Any]:
    """Return a row of the process table as clients see it."""
    return {
        "role": one.role.label,
        "rank": one.rank,
        "pid": one.pid,
        "epoch": one.epoch,
        "state": one.state,
        "phase": one.phase,
        "restarts": one.restarts,
        "last_cause": one.last_cause,
        "last_recovery_s": round(one.recovery_s, 3),
    }


async def metrics(request: web.Request) -> web.Response:
    """Give every process's metrics in Prometheus' text format."""
    return web.Response(body=exposition(request.app[SERVICE]), headers={"Content-Type": CONTENT_TYPE})
