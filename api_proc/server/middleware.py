"""What wraps every route: the API key, the request id, errors in the shape of the API, and counting."""

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from api_proc.server import request_ids
from api_proc.server.access_log import PARAMS, POLLED, TRACE_ID, USAGE, log_access
from api_proc.server.auth import Access
from api_proc.server.cors import Cors
from api_proc.server.dialects import dialect_of
from api_proc.server.errors import allowed_methods, error_response, from_http_exception
from api_proc.server.service import Service
from api_proc.server.usage import UsageCounter
from quartet.wire.errors import RequestError

if TYPE_CHECKING:
    from api_proc.server.tracing import RequestSpan

log = logging.getLogger(__name__)

CLIENT_CLOSED = 499
_SPAN_HEADERS = web.RequestKey("span_headers", dict[str, str])


def make_middleware(service: Service, cors: Cors) -> Middleware:
    """Return the one middleware of the application."""
    access = Access(service.config.server)

    @web.middleware
    async def outermost(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_ids.begin(request)
        started_s = service.clock.now()
        span = _begin_span(service, request, started_s)
        response: web.StreamResponse | None
        try:
            response = cors.preflight(request)
            if response is None:
                access.check(request)
                response = await handler(request)
        except Exception as error:
            response = _failure(service, request, error)
        except asyncio.CancelledError:
            status = status_of_cancelled(request)
            _count(request, status, started_s)
            if span is not None:
                span.end(request, status, request.get(USAGE), request.get(PARAMS))
            raise
        _count(request, response.status, started_s)
        if span is not None:
            usage = request.get(USAGE)
            span.end(request, response.status, usage, request.get(PARAMS), await _timeline(service, request, usage))
        return response

    def _count(request: web.Request, status: int, started_s: float) -> None:
        resource = request.match_info.route.resource
        service.stats.http[(resource.canonical if resource else "other", status)] += 1
        log_access(request, status, service.clock.now() - started_s)

    return outermost


def status_of_cancelled(request: web.Request) -> int:
    """Return 499 for a client that has left, 200 for one that has left with all output: many close at once."""
    usage = request.get(USAGE)
    return 200 if usage is not None and usage.is_complete else CLIENT_CLOSED


def _begin_span(service: Service, request: web.Request, now: float) -> "RequestSpan | None":
    """Begin the span of a request that may generate, if there are traces."""
    if service.tracing is None or request.method != "POST" or request.path in POLLED:
        return None
    span = service.tracing.begin(request, now)
    request[TRACE_ID], request[_SPAN_HEADERS] = span.trace_id, span.headers()
    return span


async def _timeline(service: Service, request: web.Request, usage: UsageCounter | None) -> bytes:
    """Return what the scheduler knows of a request that was retracted; nothing of others."""
    if usage is None or not usage.has_setbacks:
        return b""
    with suppress(RequestError):
        return await service.engine.query("timeline", request_ids.of(request) or "")
    return b""


def _failure(service: Service, request: web.Request, error: Exception) -> web.Response:
    """Return the response for an exception of the handler."""
    body = dialect_of(request).error_body
    match error:
        case RequestError():
            service.stats.rejected[error.code] += 1
            return error_response(error, body)
        case web.HTTPMethodNotAllowed() if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": allowed_methods(error)})
        case web.HTTPException():
            return from_http_exception(error, request.method, body)
        case ConnectionError():
            # The client has disconnected: aiohttp notices when it writes this response, and drops the connection.
            return web.Response(status=CLIENT_CLOSED)
    log.error("request %s failed", request_ids.of(request), exc_info=error)
    if request.writer.output_size and request.transport is not None:
        # A second response head in the middle of a stream would be worse than a broken connection.
        request.transport.abort()
        return web.Response(status=CLIENT_CLOSED)
    return error_response(RequestError(500, "internal_error", "the server failed to handle this request"), body)


async def echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request id into the response's headers; malformed HTTP never reaches the middleware and has none."""
    if (given := request_ids.of(request)) is not None:
        response.headers["X-Request-Id"] = given
        response.headers[dialect_of(request).request_id] = given
    response.headers.update(request.get(_SPAN_HEADERS, {}))
