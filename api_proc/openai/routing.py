"""Body, headers and key -> GenerateRequest: priority, tenant, cache salt, routing key, weight and deadline."""

import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from api_proc.openai.params import MAX_INT32, check_range
from api_proc.openai.schema import SamplingFields
from api_proc.server.auth import IS_ADMIN
from api_proc.server.errors import invalid
from api_proc.server.service import Service
from quartet.client.request import GenerateRequest
from quartet.wire.frames import ChatPrompt, IdsPrompt, SamplingParams, TextPrompt

T = TypeVar("T", int, float)

MAX_KEY_CHARACTERS = 128
MAX_TIMEOUT_S = 86_400.0


def generate_request(
    request: web.Request,
    service: Service,
    fields: SamplingFields,
    prompt: TextPrompt | IdsPrompt | ChatPrompt,
    params: SamplingParams,
    n: int,
) -> GenerateRequest:
    """Return the engine's request of `n` choices; raises RequestError 400 with the field at fault.

    The header x-override-priority goes before the body's `priority`, the body's `timeout` before the header
    x-request-timeout.
    """
    priority, timeout_s = fields.priority, fields.timeout
    if (header := request.headers.get("x-override-priority")) is not None:
        priority = number_of(int, header, "priority", "the header x-override-priority must be an integer")
    if timeout_s is None and (header := request.headers.get("x-request-timeout")) is not None:
        timeout_s = number_of(float, header, "timeout", "the header x-request-timeout must be a number of seconds")
    if priority is not None:
        check_range("priority", priority, -MAX_INT32 - 1, MAX_INT32)
    first_token_s = fields.first_token_timeout or service.config.server.first_token_timeout or None
    for name, value in (("timeout", timeout_s), ("first_token_timeout", fields.first_token_timeout)):
        if value is not None and not 0 < value <= MAX_TIMEOUT_S:
            raise invalid(name, f"{name} must be above 0 and at most {MAX_TIMEOUT_S:g} seconds")
    _check_keys_and_weight(fields)
    return GenerateRequest(
        prompt=prompt,
        params=params,
        n=n,
        priority=priority,
        tenant=tenant_of(request, service),
        cache_salt=fields.cache_salt or "",
        routing_key=fields.routing_key or "",
        weight=1.0 if fields.weight is None else fields.weight,
        deadline_s=timeout_s,
        first_token_s=first_token_s,
    )


def _check_keys_and_weight(fields: SamplingFields) -> None:
    for name, key in (("cache_salt", fields.cache_salt), ("routing_key", fields.routing_key)):
        if key is not None and len(key) > MAX_KEY_CHARACTERS:
            raise invalid(name, f"{name} must have at most {MAX_KEY_CHARACTERS} characters")
    if fields.weight is not None and not (math.isfinite(fields.weight) and fields.weight > 0):
        raise invalid("weight", "weight must be a number above 0")


def tenant_of(request: web.Request, service: Service) -> str:
    """Return a digest of the API key, "" without keys: requests of different keys share no cached prefix."""
    if not service.config.server.api_key:
        return ""
    _, _, key = request.headers.get("Authorization", "").partition(" ")
    return hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()[:16]


def visible_tenant(request: web.Request, service: Service) -> str | None:
    """Return whose requests a client may name by an id; None: those of all, with an admin key or without any keys."""
    if not service.config.server.api_key or request.get(IS_ADMIN, False):
        return None
    return tenant_of(request, service)


def number_of(kind: Callable[[str], T], text: str, param: str | None, message: str) -> T:
    """Return the number in a header; raises RequestError 400."""
    try:
        return kind(text)
    except ValueError:
        raise invalid(param, message) from None
