"""Pages of other origins: which may read answers (--cors-origins). By default none may.

No credentials are ever allowed: a page sends its key in a header, which it has to know.
"""

from aiohttp import web

from api_proc.server.service import Service

ANY = "*"
METHODS = "GET, HEAD, POST, PUT"
MAX_AGE_S = 600
REQUEST_HEADERS = frozenset({"accept", "authorization", "cache-control", "content-type", "last-event-id"})
REQUEST_PREFIXES = ("anthropic-", "openai-", "x-")
"""Headers that clients send, as OpenAI's and Anthropic's do from a page."""
EXPOSED = "Content-Location, Request-Id, Retry-After, X-Quartet-Resume, X-Request-Id, X-Should-Retry"


class Cors:
    """The origins that are admitted; adds headers to responses, and answers preflights.

    Args:
        service: with the configuration.
    """

    def __init__(self, service: Service) -> None:
        self._origins = frozenset(service.config.server.cors_origins)

    def preflight(self, request: web.Request) -> web.Response | None:
        """Return the answer to a browser's question before a request, None for any other request.

        It carries no key, so it is answered without one; it shows nothing but the configured origins.
        """
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if not self._admits(request):
            return None
        wanted = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
        allowed = sorted({name for one in wanted if _may_be_sent(name := one.strip())})
        headers = {"Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": str(MAX_AGE_S)}
        if allowed:
            headers["Access-Control-Allow-Headers"] = ", ".join(allowed)
        return web.Response(status=204, headers=headers)

    async def on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what lets a page of an admitted origin read the response."""
        if not self._origins:
            return
        if ANY not in self._origins:
            response.headers.add("Vary", "Origin")
        if self._admits(request):
            response.headers["Access-Control-Allow-Origin"] = ANY if ANY in self._origins else request.headers["Origin"]
            response.headers["Access-Control-Expose-Headers"] = EXPOSED

    def _admits(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        return origin is not None and (ANY in self._origins or origin in self._origins)


def _may_be_sent(name: str) -> bool:
    is_token = bool(name) and name.isascii() and name.replace("-", "").isalnum()
    return is_token and (name in REQUEST_HEADERS or name.startswith(REQUEST_PREFIXES))
