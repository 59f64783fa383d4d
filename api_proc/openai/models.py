"""GET /v1/models: the served model, and the check that a request names it.

The answers have the members of OpenAI's API and those of Anthropic's, which has the same routes.
"""

from datetime import UTC, datetime
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
    service = request.app[SERVICE]
    page = {"has_more": False, "first_id": service.model_name, "last_id": service.model_name}
    return json_response({"object": "list", "data": [_model(service)], **page})


async def model(request: web.Request) -> web.Response:
    """Describe one model; 404 unless it is the served one."""
    service = request.app[SERVICE]
    check_model(service, request.match_info["id"])
    return json_response(_model(service))


def _model(service: Service) -> dict[str, Any]:
    created = int(service.wall_time())
    context_length = service.config.require_model().context_length
    return {
        "id": service.model_name,
        "object": "model",
        "created": created,
        "owned_by": "quartet",
        "max_model_len": context_length,
        "type": "model",
        "display_name": service.model_name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": context_length,
    }
