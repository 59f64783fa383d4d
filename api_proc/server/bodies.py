"""JSON bodies: reading and decoding a request's, where a malformed one is a 400 that names the field, and responses."""

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from api_proc.server.compression import decompressed
from api_proc.server.errors import invalid
from quartet.wire.errors import RequestError

T = TypeVar("T")

_AT = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>\w+)`")


async def read_body(request: web.Request, limit_bytes: int, timeout_s: float, hold: Callable[[int], None]) -> bytes:
    """Return the whole body, decompressed. `hold` is told how many bytes are held, and may refuse by a RequestError.

    Raises:
        web.HTTPRequestEntityTooLarge: above `limit_bytes`; a declared length is refused before anything is read.
        RequestError: 408 when the body has not come within `timeout_s`, 400 or 415 for its Content-Encoding.
    """
    length = request.content_length
    if length is not None and length > limit_bytes:
        raise web.HTTPRequestEntityTooLarge(max_size=limit_bytes, actual_size=length)
    try:
        async with asyncio.timeout(timeout_s):
            body = await _whole(request, limit_bytes, hold)
    except TimeoutError:
        raise RequestError(408, "request_timeout", "the request body did not arrive in time") from None
    if "Content-Encoding" in request.headers:
        body = await decompressed(request, body, limit_bytes)
        hold(len(body))
    return body


async def _whole(request: web.Request, limit_bytes: int, hold: Callable[[int], None]) -> bytes:
    """Return the body as it was sent; aiohttp's own reading keeps a copy for the life of the request."""
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > limit_bytes:
            raise web.HTTPRequestEntityTooLarge(max_size=limit_bytes, actual_size=len(body))
        hold(len(body))
    return bytes(body)


def decode_body(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Return the typed request; raises RequestError 400 with the field at fault."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_value(str(error)) from None
    except msgspec.DecodeError:
        raise RequestError(400, "invalid_json", "the request body is not valid JSON") from None
    except UnicodeDecodeError:
        raise RequestError(400, "invalid_json", "the request body is not valid UTF-8") from None
    except RecursionError:
        raise RequestError(400, "invalid_json", "the request body is nested too deeply") from None


def json_response(value: Any, status: int = 200) -> web.Response:
    """Return a response with `value` as its JSON body."""
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _wrong_value(problem: str) -> RequestError:
    at = _AT.match(problem)
    what, path = (at["what"], at["path"]) if at else (problem, "")
    missing = _MISSING.search(what)
    if missing:
        path = f"{path}.{missing['field']}" if path else missing["field"]
        return invalid(path, f"{path} is required")
    return invalid(path or None, f"{path or 'the request body'}: {what[:1].lower()}{what[1:]}")
