"""The client's own id of a request: in its headers or its body, in the response's header, in the log, in timelines."""

import re
import secrets
from collections.abc import Mapping

from aiohttp import web

from api_proc.server.errors import invalid

OVERRIDE, GIVEN = "x-override-rid", "x-request-id"

_KEY = web.RequestKey("request_id", str)
_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


def begin(request: web.Request) -> None:
    """Give a request the id of its headers, or a random one.

    It goes into headers and logs, so anything but plain visible characters is replaced.
    """
    request[_KEY] = _valid(request.headers, OVERRIDE) or _valid(request.headers, GIVEN) or secrets.token_hex(16)


def take(request: web.Request, **fields: str | None) -> str:
    """Return the id of a request whose body has been read, where the first of `fields` that is set names it.

    A proxy's header X-Override-Rid goes before the body, which goes before X-Request-Id. Raises RequestError 400.
    """
    for name, given in fields.items():
        if given:
            check(name, given)
            if not _valid(request.headers, OVERRIDE):
                request[_KEY] = given
            break
    return of(request) or ""


def check(name: str, given: str) -> None:
    """Raise RequestError 400, naming the field, for an id that cannot be echoed."""
    if not _ID.match(given):
        raise invalid(name, f"{name} must have 1 to 128 visible ASCII characters")


def of(request: web.Request) -> str | None:
    """Return the id of a request, None before it has one: malformed HTTP never gets one."""
    return request.get(_KEY)


def _valid(headers: Mapping[str, str], name: str) -> str:
    given = headers.get(name, "")
    return given if _ID.match(given) else ""
