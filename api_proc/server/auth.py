"""API keys: every route needs one when keys are configured, except those listed here by name."""

import hashlib
import hmac
from collections.abc import Iterable

from aiohttp import web

from quartet.wire.errors import RequestError

PUBLIC_ROUTES = frozenset({"/", "/health", "/ready"})
"""Resources, as registered, that need no key: probes have none, and these show nothing about requests."""


class KeyRing:
    """The configured keys, kept only as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def admits(self, header: str) -> bool:
        """Return whether an Authorization header holds a key; all keys are compared, in constant time."""
        if not self._digests:
            return True
        scheme, _, key = header.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def check_key(keys: KeyRing, request: web.Request) -> None:
    """Raise RequestError 401 unless the matched route is public or the request has a key.

    The resource that the router chose decides, never the text of the path.
    """
    resource = request.match_info.route.resource
    is_public = resource is not None and resource.canonical in PUBLIC_ROUTES
    if not is_public and not keys.admits(request.headers.get("Authorization", "")):
        raise RequestError(401, "invalid_api_key", "a valid API key is required: Authorization: Bearer KEY")
