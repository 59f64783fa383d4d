"""Errors as Anthropic's API writes them: an object with the kind of error, and a message that names the field."""

import re

import msgspec

from api_proc.server.dialects import Dialect
from quartet.wire.errors import RequestError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}

TOO_LONG = "prompt is too long: {prompt} tokens > {context} maximum"
"""Anthropic's words: agents look for them, to shorten their conversation."""

WITHOUT_THREADS = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
"""By this Anthropic's tool runner knows that it has to send the whole conversation with each request."""

_LENGTHS = re.compile(r"context length is (?P<context>\d+) tokens\D*(?P<prompt>\d+) tokens")
_INDEX = re.compile(r"\[(\d+)\]")


def error_body(error: RequestError) -> bytes:
    """Return the JSON of an error, also used for the error event of a stream."""
    kind = TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    content: dict[str, object] = {"type": kind, "message": _message(error)}
    if error.param == "thread":
        content["details"] = WITHOUT_THREADS
    return msgspec.json.encode({"type": "error", "error": content})


def _message(error: RequestError) -> str:
    """Return the message with the field's path as Anthropic writes it: `messages.0.content.1`."""
    lengths = _LENGTHS.search(error.message) if error.code == "context_length_exceeded" else None
    if lengths is not None:
        return TOO_LONG.format(**lengths.groupdict())
    if error.param is None:
        return error.message
    path = _INDEX.sub(r".\1", error.param)
    if error.param in error.message:
        return error.message.replace(error.param, path)
    return f"{path}: {error.message}"


ANTHROPIC = Dialect("/v1/messages", error_body, "request-id")
