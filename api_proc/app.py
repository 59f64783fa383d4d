"""The aiohttp application: routes, and what wraps every one of them (key, request id, errors, counting)."""

import logging
import re
import secrets

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from api_proc.admin import queries, status
from api_proc.openai.chat import chat_completions
from api_proc.openai.completions import completions
from api_proc.server.auth import KeyRing, check_key
from api_proc.server.errors import error_response, from_http_exception
from api_proc.server.service import SERVICE, Service
from quartet.wire.errors import RequestError

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
CLIENT_CLOSED = 499
_REQUEST_ID_KEY = web.RequestKey("request_id", str)
_GIVEN_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


def build_app(service: Service) -> web.Application:
    """Return the application; the service is found in it under SERVICE."""
    keys = KeyRing(service.config.server.api_key)
    app = web.Application(middlewares=[_outermost(service, keys)], client_max_size=service.config.server.max_body_bytes)
    app[SERVICE] = service
    app.on_response_prepare.append(_echo_request_id)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/v1/models", status.models)
    app.router.add_get("/v1/models/{id:.+}", status.model)
    app.router.add_get("/health", status.health)
    app.router.add_get("/ready", status.ready)
    app.router.add_get("/metrics", status.metrics)
    app.router.add_get("/topology", status.topology)
    app.router.add_get("/requests/{rid}/timeline", queries.timeline)
    app.router.add_get("/trace", queries.trace)
    app.router.add_get("/config", queries.config)
    app.router.add_post("/flush_cache", queries.flush_cache)
    app.router.add_get("/", status.index)
    return app


def _outermost(service: Service, keys: KeyRing) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID, "")
        # An id of the client's goes into headers and logs: anything but plain visible characters is replaced.
        request[_REQUEST_ID_KEY] = given if _GIVEN_ID.match(given) else secrets.token_hex(16)
        response = await _answered(service, keys, request, handler)
        resource = request.match_info.route.resource
        service.stats.http[(resource.canonical if resource else "other", response.status)] += 1
        return response

    return guard


async def _answered(service: Service, keys: KeyRing, request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run the handler; every error becomes OpenAI's error object."""
    try:
        check_key(keys, request)
        return await handler(request)
    except RequestError as error:
        service.stats.rejected[error.code] += 1
        return error_response(error)
    except web.HTTPException as exc:
        return from_http_exception(exc, request.method)
    except ConnectionError:
        # The client has gone: aiohttp finds that out when it writes this, and drops the connection without a word.
        return web.Response(status=CLIENT_CLOSED)
    except Exception:
        log.exception("request %s failed", request[_REQUEST_ID_KEY])
        if request.writer.output_size and request.transport is not None:
            # A second head in the middle of a stream would be worse than a broken connection.
            request.transport.abort()
            return web.Response(status=CLIENT_CLOSED)
        return error_response(RequestError(500, "internal_error", "the server failed to handle this request"))


async def _echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    # A request that never reached the middleware (malformed HTTP) has no id.
    if _REQUEST_ID_KEY in request:
        response.headers["X-Request-Id"] = request[_REQUEST_ID_KEY]
