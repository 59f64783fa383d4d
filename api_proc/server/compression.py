"""Content-Encoding of request bodies: gzip and deflate, within the limit that holds for plain bodies.

aiohttp's own decompression accepts a gzip body without its end, and refuses other encodings below the routes.
"""

import asyncio
import zlib

from aiohttp import web

from quartet.wire.errors import RequestError

GZIP_BITS = 16 + zlib.MAX_WBITS
MAX_MEMBERS = 16
"""A gzip body may be several, one after the other; each costs a copy of the rest."""


async def decompressed(request: web.Request, body: bytes, limit_bytes: int) -> bytes:
    """Return a body as it was before its Content-Encoding.

    Raises:
        RequestError: 400 for a body that is damaged or not in its encoding, 415 for an encoding that is not served.
        web.HTTPRequestEntityTooLarge: above `limit_bytes`.
    """
    named = ",".join(request.headers.getall("Content-Encoding", ())).lower()
    codings = [coding for part in named.split(",") if (coding := part.strip()) not in ("", "identity")]
    if not codings:
        return body
    if codings not in (["gzip"], ["x-gzip"], ["deflate"]):
        message = f"Content-Encoding {', '.join(codings)[:64]!r} is not supported; use gzip, deflate or none"
        raise RequestError(415, "unsupported_content_encoding", message)
    try:
        plain = await asyncio.to_thread(_decompress, body, _window_bits(codings[0], body), limit_bytes)
    except zlib.error:
        message = f"the request body is not {codings[0]} data, although its Content-Encoding says so"
        raise RequestError(400, "invalid_content_encoding", message) from None
    if len(plain) > limit_bytes:
        raise web.HTTPRequestEntityTooLarge(max_size=limit_bytes, actual_size=len(plain))
    return plain


def _window_bits(coding: str, body: bytes) -> int:
    if coding != "deflate":
        return GZIP_BITS
    # Some clients send deflate data without zlib's header, whose lowest bits are 8.
    return zlib.MAX_WBITS if body[:1] and body[0] & 0xF == 8 else -zlib.MAX_WBITS


def _decompress(data: bytes, window_bits: int, limit_bytes: int) -> bytes:
    """Return the plain data, cut off one byte above the limit. Raises zlib.error for damaged data and a missing end."""
    plain = bytearray()
    for _ in range(MAX_MEMBERS):
        member = zlib.decompressobj(window_bits)
        plain += member.decompress(data, limit_bytes + 1 - len(plain))
        if len(plain) > limit_bytes:
            return bytes(plain)
        data = member.unused_data
        if not member.eof or (data and window_bits != GZIP_BITS):
            raise zlib.error
        if not data:
            return bytes(plain)
    raise zlib.error
