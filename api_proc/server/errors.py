"""Errors as a client sees them: OpenAI's nested error object, without paths and stack traces."""

import math

import msgspec
from aiohttp import web

from quartet.wire.errors import RequestError


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


def error_response(error: RequestError) -> web.Response:
    """Return the response for an error that comes before the first byte of output."""
    response = web.Response(status=error.status, body=error_body(error), content_type="application/json")
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
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


def from_http_exception(exc: web.HTTPException, method: str) -> web.Response:
    """Return aiohttp's own refusal (route, method, size) in OpenAI's shape."""
    messages = {
        404: ("not_found", "there is no such route"),
        405: ("method_not_allowed", f"{method} is not allowed on this route"),
        413: ("request_too_large", "the request body is larger than this server takes"),
    }
    code, message = messages.get(exc.status, ("http_error", exc.reason))
    response = error_response(RequestError(exc.status, code, message))
    if "Allow" in exc.headers:
        response.headers["Allow"] = exc.headers["Allow"]
    return response
