"""Body, headers and key -> GenerateRequest: priority, tenant, cache salt, session, routing key, weight and deadline."""

import math
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from api_proc.openai.params import MAX_INT32, check_range
from api_proc.openai.schema import SamplingFields
from api_proc.openai.tiers import tier_priority
from api_proc.server import request_ids
from api_proc.server.auth import IS_ADMIN, given_key
from api_proc.server.errors import invalid
from api_proc.server.service import Service
from quartet.client.request import GenerateRequest
from quartet.wire.frames import ChatPrompt, IdsPrompt, SamplingParams, TextPrompt
from quartet.wire.tenants import tenant_named

T = TypeVar("T", int, float)

MAX_KEY_CHARACTERS = 128
MAX_TIMEOUT_S = 86_400.0
USER_HEADER = "x-openwebui-user-id"
SESSION_HEADER = "x-session-id"
ROUTING_HEADERS = ("x-smg-routing-key", "x-openwebui-chat-id")


def generate_request(
    request: web.Request,
    service: Service,
    fields: SamplingFields,
    prompt: TextPrompt | IdsPrompt | ChatPrompt,
    params: SamplingParams,
    n: int,
) -> GenerateRequest:
    """Return the engine's request of `n` choices; raises RequestError 400 with the field at fault.

    The body's `timeout` goes before the header x-request-timeout.
    """
    timeout_s, priority = fields.timeout, priority_of(request, fields)
    if timeout_s is None and (header := request.headers.get("x-request-timeout")) is not None:
        timeout_s = number_of(float, header, "timeout", "the header x-request-timeout must be a number of seconds")
    of_tier = tier_priority(fields.service_tier, service.config.scheduler)
    first_token_s = fields.first_token_timeout or service.config.server.first_token_timeout or None
    for name, value in (("timeout", timeout_s), ("first_token_timeout", fields.first_token_timeout)):
        if value is not None and not 0 < value <= MAX_TIMEOUT_S:
            raise invalid(name, f"{name} must be above 0 and at most {MAX_TIMEOUT_S:g} seconds")
    _check_keys_and_weight(fields)
    return GenerateRequest(
        prompt=prompt,
        params=params,
        n=n,
        priority=of_tier if priority is None else priority,
        tenant=tenant_of(request, service),
        cache_salt=fields.cache_salt or "",
        routing_key=_routing_key(request, fields),
        session_id=_session_id(request, fields),
        weight=1.0 if fields.weight is None else fields.weight,
        deadline_s=timeout_s,
        first_token_s=first_token_s,
        request_id=request_ids.take(request, rid=fields.rid, request_id=fields.request_id),
    )


def priority_of(request: web.Request, fields: SamplingFields) -> int | None:
    """Return the priority of the header x-override-priority, else of the body; raises RequestError 400."""
    priority = fields.priority
    if (header := request.headers.get("x-override-priority")) is not None:
        priority = number_of(int, header, "priority", "the header x-override-priority must be an integer")
    if priority is not None:
        check_range("priority", priority, -MAX_INT32 - 1, MAX_INT32)
    return priority


def _routing_key(request: web.Request, fields: SamplingFields) -> str:
    """Return what groups requests that share a prefix: the first of several names that clients have for it."""
    headers = (request.headers.get(name) for name in ROUTING_HEADERS)
    names = (fields.routing_key, fields.prompt_cache_key, *headers, _session_id(request, fields), fields.user)
    key = next((name for name in names if name), "")
    return key if len(key) <= MAX_KEY_CHARACTERS else tenant_named(key)


def _session_id(request: web.Request, fields: SamplingFields) -> str:
    """Return the client's id of the session of which the request is a turn; raises RequestError 400."""
    name: str = fields.session_id or request.headers.get(SESSION_HEADER) or ""
    if len(name) > MAX_KEY_CHARACTERS:
        raise invalid(
            "session_id", f"session_id and {SESSION_HEADER} must have at most {MAX_KEY_CHARACTERS} characters"
        )
    return name


def _check_keys_and_weight(fields: SamplingFields) -> None:
    for name in ("cache_salt", "routing_key", "prompt_cache_key"):
        key = getattr(fields, name)
        if key is not None and len(key) > MAX_KEY_CHARACTERS:
            raise invalid(name, f"{name} must have at most {MAX_KEY_CHARACTERS} characters")
    if fields.weight is not None and not (math.isfinite(fields.weight) and fields.weight > 0):
        raise invalid("weight", "weight must be a number above 0")


def tenant_of(request: web.Request, service: Service) -> str:
    """Return whose request it is: requests of different tenants share no cached prefix.

    A digest of the API key; without keys one of the user that Open WebUI names, "" if it names none.
    """
    if not service.config.server.api_key:
        user = request.headers.get(USER_HEADER, "")
        return tenant_named(user) if user else ""
    return tenant_named(given_key(request))


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
