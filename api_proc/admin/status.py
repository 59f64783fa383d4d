"""The routes that tell about the service instead of using it: models, probes, processes, metrics."""

from typing import Any

import msgspec
from aiohttp import web

from api_proc.admin.metrics import CONTENT_TYPE, exposition
from api_proc.openai.routing import check_model
from api_proc.server.service import SERVICE, Service
from quartet import __version__


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": int(service.wall_time()),
        "owned_by": "quartet",
        "max_model_len": service.config.require_model().context_length,
    }


async def index(request: web.Request) -> web.Response:
    """Say what this is."""
    return _json({"name": "quartet", "version": __version__, "api": "/v1"})


async def models(request: web.Request) -> web.Response:
    """List the served model."""
    return _json({"object": "list", "data": [_model(request.app[SERVICE])]})


async def model(request: web.Request) -> web.Response:
    """Describe one model; 404 unless it is the served one."""
    service = request.app[SERVICE]
    check_model(service, request.match_info["id"])
    return _json(_model(service))


async def health(request: web.Request) -> web.Response:
    """Liveness: 503 until the engine was ready for the first time, then 200 as long as the service runs."""
    is_alive = request.app[SERVICE].engine.is_alive
    return _json({"status": "ok" if is_alive else "starting"}, 200 if is_alive else 503)


async def ready(request: web.Request) -> web.Response:
    """Readiness: 200 only while every role is up and requests are taken."""
    service = request.app[SERVICE]
    if service.is_draining:
        return _json({"status": "draining"}, 503)
    is_ready = service.engine.is_accepting
    return _json({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)


async def topology(request: web.Request) -> web.Response:
    """Show the process table."""
    rows = [
        {
            "role": one.role.label,
            "rank": one.rank,
            "pid": one.pid,
            "epoch": one.epoch,
            "state": one.state,
            "phase": one.phase,
            "restarts": one.restarts,
        }
        for one in request.app[SERVICE].engine.process_table.processes
    ]
    return _json({"processes": rows})


async def metrics(request: web.Request) -> web.Response:
    """Give every process's metrics in Prometheus' text format."""
    text = exposition(request.app[SERVICE])
    return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})
