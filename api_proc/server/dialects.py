"""What every answer of an API has in common beside its bodies: the shape of errors, and the header of the request's id.

The path decides, so that a route that does not exist is refused in the shape of those beside it.
"""

from dataclasses import dataclass

from aiohttp import web

from api_proc.server.errors import ErrorBody, error_body


@dataclass(frozen=True, slots=True)
class Dialect:
    """The API of the path `root` and of all below it."""

    root: str
    error_body: ErrorBody
    request_id: str


OPENAI = Dialect("", error_body, "X-Request-Id")

DIALECTS = web.AppKey("dialects", tuple[Dialect, ...])
"""Those of the application that are not OpenAI's."""


def dialect_of(request: web.Request) -> Dialect:
    """Return the dialect in which a request is answered."""
    others: tuple[Dialect, ...] = request.app[DIALECTS]
    return next((one for one in others if f"{request.path}/".startswith(f"{one.root}/")), OPENAI)
