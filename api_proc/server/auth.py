"""API keys: every route needs one when keys are configured, except those listed here by name.

An admin key, where one is configured, opens every route, and the admin routes open to no other.
"""

import hashlib
import hmac
from collections.abc import Iterable

from aiohttp import web

from quartet.wire.config import ServerConfig
from quartet.wire.errors import RequestError

PUBLIC_ROUTES = frozenset({"/", "/health", "/ready"})
"""Resources, as registered, that need no key: probes have none, and these show nothing about requests."""
ADMIN_ROUTES = frozenset({"/trace", "/config", "/flush_cache", "/ui/kill"})
"""Resources that show or change what belongs to all clients; /ui/kill exists with --demo only."""
IS_ADMIN = web.RequestKey("is_admin", bool)
"""Of a request: whether it has an admin key."""


class KeyRing:
    """Keys, kept only as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admits(self, key: str) -> bool:
        """Return whether the key is one of these; all of them are compared, in constant time."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def given_key(request: web.Request) -> str:
    """Return the key of a request: of `Authorization: Bearer KEY`, else of `x-api-key: KEY`; "" without either."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return (key if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "")).strip()


class Access:
    """Who may use which route.

    Args:
        config: with the keys.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._keys = KeyRing(config.api_key)
        self._admin_keys = KeyRing(config.admin_api_key)

    def check(self, request: web.Request) -> None:
        """Raise RequestError 401 or 403 unless the matched route is public, or the request has a key for it.

        The resource that the router chose decides, never the text of the path.
        """
        resource = request.match_info.route.resource
        name = "" if resource is None else resource.canonical
        if name in PUBLIC_ROUTES:
            return
        key = given_key(request)
        is_admin, has_key = self._admin_keys.admits(key), self._keys.admits(key)
        request[IS_ADMIN] = is_admin
        needs_admin = bool(self._admin_keys) and name in ADMIN_ROUTES
        if is_admin or (not needs_admin and (has_key or not self._keys)):
            return
        if has_key:
            raise RequestError(403, "admin_key_required", "this route needs an admin key")
        message = "a valid API key is required: Authorization: Bearer KEY, or x-api-key: KEY"
        raise RequestError(401, "invalid_api_key", message)
