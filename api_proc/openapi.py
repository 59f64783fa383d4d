"""GET /openapi.json: the routes of the application as an OpenAPI document, with bodies from the msgspec types."""

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from api_proc.anthropic.schema import CountRequest, MessageRequest
from api_proc.native.abort import AbortRequest
from api_proc.native.elsewhere import ELSEWHERE
from api_proc.native.generate_fields import GenerateBody, NativeSampling
from api_proc.native.tokens import DetokenizeRequest, TokenizeRequest
from api_proc.openai.chat_messages import EFFORTS, ROLES
from api_proc.openai.params import MAX_INT32
from api_proc.openai.response_task import MAX_N
from api_proc.openai.routing import MAX_TIMEOUT_S
from api_proc.openai.schema import ChatRequest, CompletionRequest
from api_proc.openai.tiers import TIERS
from api_proc.openai.unsupported import NEVER_IN_CHAT, NEVER_SERVED
from api_proc.responses.schema import ResponseRequest
from api_proc.server.auth import PUBLIC_ROUTES
from api_proc.server.bodies import json_response
from api_proc.ui.demo import KillRequest
from quartet.version import __version__
from quartet.wire.sampling_bounds import MAX_TOP_LOGPROBS, SAMPLING_BOUNDS

BODIES: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessageRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/generate": GenerateBody,
    "/tokenize": TokenizeRequest,
    "/v1/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/v1/detokenize": DetokenizeRequest,
    "/abort_request": AbortRequest,
    "/ui/kill": KillRequest,
}
"""Types of bodies by path; a route without one takes none."""
QUERIES: dict[str, dict[str, dict[str, Any]]] = {
    "/v1/loads": {
        "include": {"type": "string"},
        "dp_rank": {"type": "integer", "minimum": 0},
        "format": {"type": "string", "enum": ["json", "prometheus"]},
    },
    "/v1/streams/{id}": {"starting_after": {"type": "string"}},
}
"""Parameters of the query by path."""
STREAMED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate"})
"""Paths that answer with server-sent events if the body says so."""
PLAIN = frozenset({"/metrics"})
EVENTS = frozenset({"/v1/streams/{id}", "/ui/stream"})
PAGES = frozenset({"/"})
"""Paths that give a page to browsers."""


class ErrorDetail(msgspec.Struct):
    """What is wrong; `param` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """The body of every error, but for those of Anthropic's routes."""

    error: ErrorDetail


BOUNDS: dict[str, dict[str, Any]] = {
    **{name: {"minimum": low, "maximum": high} for name, (low, high, _) in SAMPLING_BOUNDS.items()},
    "n": {"minimum": 1, "maximum": MAX_N},
    "max_tokens": {"minimum": 0, "maximum": MAX_INT32},
    "max_completion_tokens": {"minimum": 1, "maximum": MAX_INT32},
    "max_output_tokens": {"minimum": 1, "maximum": MAX_INT32},
    "max_new_tokens": {"minimum": 0, "maximum": MAX_INT32},
    "min_tokens": {"minimum": 0, "maximum": MAX_INT32},
    "min_new_tokens": {"minimum": 0, "maximum": MAX_INT32},
    "top_logprobs": {"minimum": 0, "maximum": MAX_TOP_LOGPROBS},
    "top_logprobs_num": {"minimum": 0, "maximum": MAX_TOP_LOGPROBS},
    "priority": {"minimum": -MAX_INT32 - 1, "maximum": MAX_INT32},
    "timeout": {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
    "first_token_timeout": {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
    "weight": {"exclusiveMinimum": 0},
    "messages": {"minItems": 1},
    "service_tier": {"enum": [*TIERS, None]},
    "reasoning_effort": {"enum": [*EFFORTS, None]},
}
"""What the types of fields do not say, by the name of the field."""


async def openapi(request: web.Request) -> web.Response:
    """Describe every route of this server, as an OpenAPI document."""
    return json_response(document(request.app))


def document(app: web.Application) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    kinds: list[type] = [*dict.fromkeys(BODIES.values()), NativeSampling, Error]
    # Names of two modules (Message, Tool) are made distinct by msgspec.
    references, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind: dict[type, dict[str, Any]] = dict(zip(kinds, references, strict=True))
    one = by_kind[NativeSampling]
    components["GenerateBody"]["properties"]["sampling_params"] = {
        "anyOf": [one, {"type": "array", "items": one}, {"type": "null"}]
    }
    for name, schema in components.items():
        _refine(name, schema)
    paths: dict[str, dict[str, Any]] = {}
    for path, method, summary in routes(app):
        paths.setdefault(path, {})[method.lower()] = _operation(path, method, summary, by_kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quartet", "version": __version__},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _refine(name: str, schema: dict[str, Any]) -> None:
    """Add bounds to the fields of a type, and leave out those that are always refused."""
    properties = schema.get("properties", {})
    for field in NEVER_SERVED + (NEVER_IN_CHAT if name == "ChatRequest" else ()):
        properties.pop(field, None)
    for field, bounds in BOUNDS.items():
        # Anthropic's tiers have other names.
        if field in properties and (name, field) != ("MessageRequest", "service_tier"):
            properties[field] |= bounds
    if name in ("Message", "Turn"):
        roles = ROLES if name == "Message" else ("user", "assistant")
        properties["role"] |= {"enum": [*roles]}


def routes(app: web.Application) -> Iterator[tuple[str, str, str]]:
    """Yield path, method and first sentence of each route that is served; those that only refuse are left out."""
    elsewhere = {path for paths in ELSEWHERE.values() for path in paths}
    for route in app.router.routes():
        path = "" if route.resource is None else route.resource.canonical
        if path and path not in elsewhere and route.method != "HEAD":
            summary = (inspect.getdoc(route.handler) or "").partition("\n")[0]
            yield path, route.method, summary


def _operation(path: str, method: str, summary: str, by_kind: dict[type, dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": f"{method.lower()}{path.translate(str.maketrans('/{}', '_  ')).replace(' ', '')}",
        "security": [] if path in PUBLIC_ROUTES else [{"key": []}],
        "responses": {
            "200": {"description": "success", "content": {kind: {} for kind in _content_types(path)}},
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": by_kind[Error]}},
            },
        },
    }
    if parameters := [*_path_parameters(path), *_query_parameters(path)]:
        operation["parameters"] = parameters
    if path in BODIES and method != "GET":
        schema = by_kind[BODIES[path]]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _content_types(path: str) -> list[str]:
    if path in PLAIN:
        return ["text/plain"]
    if path in EVENTS:
        return ["text/event-stream"]
    others = [*(["text/event-stream"] if path in STREAMED else []), *(["text/html"] if path in PAGES else [])]
    return ["application/json", *others]


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for part in path.split("/"):
        if part.startswith("{"):
            yield {"name": part.strip("{}"), "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name, schema in QUERIES.get(path, {}).items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}
