"""Errors as a client sees them: OpenAI's nested error object, without paths and stack traces."""

import math
from collections.abc import Callable

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError, LineTooLong

from quartet.wire.errors import RequestError

MAX_REASON = 120
HTTP_2_REFUSED = "Pause on PRI/Upgrade"


def error_type(status: int) -> str:
    """Return OpenAI's `type` word for an HTTP status."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_body(error: RequestError) -> bytes:
    """Return the JSON of `{"error": {...}}`, also used for the error event of a stream."""
    detail = {
        "message": error.message,
        "type": error_type(error.status),
        "param": error.param,
        "code": error.code,
    }
    return msgspec.json.encode({"error": detail})


ErrorBody = Callable[[RequestError], bytes]
"""How an API writes an error."""


def error_response(error: RequestError, body: ErrorBody = error_body) -> web.Response:
    """Return the response for an error that comes before the first byte of output."""
    response = web.Response(status=error.status, body=body(error), content_type="application/json")
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status == 415:
        response.headers["Accept-Encoding"] = "gzip, deflate"
    return response


def invalid(param: str | None, message: str) -> RequestError:
    """Return the 400 for a value that is out of bounds or of the wrong shape."""
    return RequestError(400, "invalid_value", message, param)


def unsupported(param: str) -> RequestError:
    """Return the 400 for a field that is known but not served; ignoring it would mislead the client."""
    return RequestError(400, "unsupported_parameter", f"{param} is not supported yet", param)


def draining() -> RequestError:
    """Return the 503 of a service that is shutting down."""
    return RequestError(503, "draining", "the server is shutting down; send the request again", retry_after_s=1.0)


def malformed_http(problem: BaseException | None) -> RequestError:
    """Return the error for what aiohttp's parser has refused."""
    reason = problem.message if isinstance(problem, HttpProcessingError) else ""
    if isinstance(problem, LineTooLong) or reason.startswith("Too many headers"):
        return RequestError(
            431, "headers_too_large", "the request line or the headers are longer than this server takes"
        )
    if isinstance(problem, InvalidURLError):
        reason = "the address is not a URL"
    if reason.startswith(HTTP_2_REFUSED):
        reason = "HTTP 2 is not served, use HTTP 1.1"
    # Below its first paragraph the parser's message quotes the request.
    reason = " ".join(reason.partition("\n\n")[0].split()).rstrip(":.")[:MAX_REASON]
    return RequestError(400, "malformed_http", f"the request is not valid HTTP: {reason or 'it cannot be parsed'}")


def from_http_exception(exc: web.HTTPException, method: str, body: ErrorBody = error_body) -> web.Response:
    """Return aiohttp's own refusal (route, method, size) in the shape of the API's errors."""
    messages = {
        404: ("not_found", "there is no such route"),
        405: ("method_not_allowed", f"{method} is not allowed on this route"),
        413: ("request_too_large", "the request body is larger than this server takes"),
        417: ("expectation_failed", "the only expectation that is served is 100-continue"),
    }
    code, message = messages.get(exc.status, ("http_error", exc.reason))
    response = error_response(RequestError(exc.status, code, message), body)
    if isinstance(exc, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = allowed_methods(exc)
    return response


def allowed_methods(exc: web.HTTPMethodNotAllowed) -> str:
    """Return the methods of a route, for the header Allow; OPTIONS is answered for every one."""
    return ", ".join(sorted({*exc.allowed_methods, "OPTIONS"}))
