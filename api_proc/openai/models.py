"""GET /v1/models: the served model, and the check that a request names it."""

from typing import Any

from aiohttp import web

from api_proc.server.bodies import json_response
from api_proc.server.service import SERVICE, Service
from quartet.wire.errors import RequestError


def check_model(service: Service, name: str | None) -> None:
    """Raise RequestError 404, naming what is served, unless `name` is the served model or absent."""
    if name is not None and name != service.model_name:
        raise RequestError(
            404, "model_not_found", f"the model does not exist; this server serves: {service.model_name}", "model"
        )


async def models(request: web.Request) -> web.Response:
    """List the served model."""
    return json_response({"object": "list", "data": [_model(request.app[SERVICE])]})


async def model(request: web.Request) -> web.Response:
    """Describe one model; 404 unless it is the served one."""
    service = request.app[SERVICE]
    check_model(service, request.match_info["id"])
    return json_response(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": int(service.wall_time()),
        "owned_by": "quartet",
        "max_model_len": service.config.require_model().context_length,
    }
