"""What wraps every route: the API key, the request id, errors as OpenAI's error object, and counting."""

import logging
import re
import secrets

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from api_proc.server.auth import Access
from api_proc.server.errors import error_response, from_http_exception
from api_proc.server.service import Service
from quartet.wire.errors import RequestError

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
CLIENT_CLOSED = 499
_REQUEST_ID_KEY = web.RequestKey("request_id", str)
_GIVEN_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


def make_middleware(service: Service) -> Middleware:
    """Return the one middleware of the application."""
    access = Access(service.config.server)

    @web.middleware
    async def outermost(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID, "")
        # A client's id goes into headers and logs: anything but plain visible characters is replaced.
        request[_REQUEST_ID_KEY] = given if _GIVEN_ID.match(given) else secrets.token_hex(16)
        try:
            access.check(request)
            response = await handler(request)
        except Exception as error:
            response = _failure(service, request, error)
        resource = request.match_info.route.resource
        service.stats.http[(resource.canonical if resource else "other", response.status)] += 1
        return response

    return outermost


def _failure(service: Service, request: web.Request, error: Exception) -> web.Response:
    """Return the response for an exception of the handler."""
    match error:
        case RequestError():
            service.stats.rejected[error.code] += 1
            return error_response(error)
        case web.HTTPException():
            return from_http_exception(error, request.method)
        case ConnectionError():
            # The client has disconnected: aiohttp notices when it writes this response, and drops the connection.
            return web.Response(status=CLIENT_CLOSED)
    log.error("request %s failed", request[_REQUEST_ID_KEY], exc_info=error)
    if request.writer.output_size and request.transport is not None:
        # A second response head in the middle of a stream would be worse than a broken connection.
        request.transport.abort()
        return web.Response(status=CLIENT_CLOSED)
    return error_response(RequestError(500, "internal_error", "the server failed to handle this request"))


async def echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Put the request id into the response's headers; malformed HTTP never reaches the middleware and has none."""
    if _REQUEST_ID_KEY in request:
        response.headers["X-Request-Id"] = request[_REQUEST_ID_KEY]
