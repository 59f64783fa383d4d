"""What a request says about its place in the engine, from body, headers and key: priority, tenant, deadline, model."""

import hashlib
import math

from aiohttp import web

from api_proc.openai.params import MAX_INT32, whole
from api_proc.openai.schema import SamplingFields
from api_proc.server.errors import invalid
from api_proc.server.service import Service
from quartet.wire.errors import RequestError

MAX_SALT_CHARACTERS = 128
MAX_TIMEOUT_S = 86_400.0


def check_model(service: Service, name: str | None) -> None:
    """Raise RequestError 404, naming what is served, unless `name` is the served model or absent."""
    if name is not None and name != service.model_name:
        raise RequestError(
            404, "model_not_found", f"the model does not exist; this server serves: {service.model_name}", "model"
        )


def priority(request: web.Request, fields: SamplingFields) -> int | None:
    """Return the priority, higher first, or None; the header x-override-priority goes before the body."""
    header = request.headers.get("x-override-priority")
    if header is None:
        given = fields.priority
        return None if given is None else whole("priority", given, -MAX_INT32 - 1, MAX_INT32)
    try:
        return whole("priority", int(header), -MAX_INT32 - 1, MAX_INT32)
    except ValueError:
        raise invalid("priority", "the header x-override-priority must be an integer") from None


def deadline_s(request: web.Request, fields: SamplingFields) -> float | None:
    """Return the seconds the client gives the whole request (`timeout`, or the header x-request-timeout), or None."""
    given = fields.timeout
    header = request.headers.get("x-request-timeout")
    if given is None and header is not None:
        try:
            given = float(header)
        except ValueError:
            raise invalid("timeout", "the header x-request-timeout must be a number of seconds") from None
    if given is not None and not (math.isfinite(given) and 0 < given <= MAX_TIMEOUT_S):
        raise invalid("timeout", f"timeout must be above 0 and at most {MAX_TIMEOUT_S:g} seconds")
    return given


def cache_salt(fields: SamplingFields) -> str:
    """Return the salt that keeps prefixes apart, or an empty string."""
    salt = fields.cache_salt or ""
    if len(salt) > MAX_SALT_CHARACTERS:
        raise invalid("cache_salt", f"cache_salt must have at most {MAX_SALT_CHARACTERS} characters")
    return salt


def routing_key(fields: SamplingFields) -> str:
    """Return the key by which policy routing-key groups requests, or an empty string."""
    key = fields.routing_key or ""
    if len(key) > MAX_SALT_CHARACTERS:
        raise invalid("routing_key", f"routing_key must have at most {MAX_SALT_CHARACTERS} characters")
    return key


def weight(fields: SamplingFields) -> float:
    """Return the weight that policy dfs-weight-tutorial gives the request, 1 if it names none."""
    given = 1.0 if fields.weight is None else fields.weight
    if not (math.isfinite(given) and given > 0):
        raise invalid("weight", "weight must be a number above 0")
    return given


def tenant(request: web.Request, service: Service) -> str:
    """Return whose request it is: a digest of the key, so that tenants share no cached prefix; empty without keys."""
    if not service.config.server.api_key:
        return ""
    _, _, key = request.headers.get("Authorization", "").partition(" ")
    return hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()[:16]
