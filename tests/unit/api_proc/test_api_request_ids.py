"""Ids that clients give their requests, tiers, and what groups and isolates requests where no field says so."""

from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error

from quartet.wire.config import SchedulerConfig

BODY: dict[str, Any] = {"messages": MESSAGES}


@pytest.mark.parametrize(
    ("headers", "fields", "expected"),
    [
        ({"X-Request-Id": "of-header"}, {}, "of-header"),
        ({}, {"request_id": "of-body"}, "of-body"),
        ({}, {"rid": "of-body"}, "of-body"),
        ({}, {"rid": "of-rid", "request_id": "of-body"}, "of-rid"),
        ({"X-Request-Id": "of-header"}, {"rid": "of-body"}, "of-body"),
        ({"X-Request-Id": "of-header", "X-Override-Rid": "of-proxy"}, {"rid": "of-body"}, "of-proxy"),
        ({"X-Request-Id": "two words"}, {"rid": "of-body"}, "of-body"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_clients_id_is_echoed_and_reaches_the_engine(
    api: Any, headers: dict[str, str], fields: dict[str, str], expected: str, is_stream: bool
) -> None:
    status, _, answered = await api.post(CHAT, {**BODY, **fields, "stream": is_stream}, headers=headers)
    assert (status, answered["X-Request-Id"]) == (200, expected)
    assert api.engine.outputs[0].request.request_id == expected


async def test_without_an_id_the_echoed_one_names_the_request(api: Any) -> None:
    _, _, headers = await api.post(CHAT, BODY)
    assert api.engine.outputs[0].request.request_id == headers["X-Request-Id"]


@pytest.mark.parametrize("given", ["two words", "x" * 129, "ü", "a\nb"])
async def test_an_id_in_the_body_that_cannot_be_echoed_is_refused(api: Any, given: str) -> None:
    for name in ("rid", "request_id"):
        status, body, _ = await api.post(COMPLETIONS, {"prompt": "x", name: given})
        assert status == 400
        assert_error(body, "invalid_value", name)


@pytest.mark.parametrize(
    ("config", "tier", "priority", "echoed"),
    [
        ({"enable_priority_scheduling": True}, "priority", 100, "priority"),
        ({"enable_priority_scheduling": True}, "flex", None, "flex"),
        ({"enable_priority_scheduling": True}, "auto", None, "default"),
        ({"enable_priority_scheduling": True}, "default", None, "default"),
        ({"enable_priority_scheduling": True, "default_priority_value": 5}, "flex", -95, "flex"),
        (
            {"enable_priority_scheduling": True, "schedule_low_priority_values_first": True},
            "priority",
            -100,
            "priority",
        ),
        ({}, "priority", 100, "default"),
    ],
)
async def test_tiers_are_priorities(
    make_api: Any, config: dict[str, Any], tier: str, priority: int | None, echoed: str
) -> None:
    api = await make_api(scheduler=SchedulerConfig(**config))
    for path, more in ((CHAT, BODY), (COMPLETIONS, {"prompt": "x"})):
        status, body, _ = await api.post(path, {**more, "service_tier": tier})
        assert (status, body["service_tier"]) == (200, echoed)
        assert api.engine.outputs[-1].request.priority == priority
        _, text, _ = await api.post(path, {**more, "service_tier": tier, "stream": True})
        assert text.count(f'"service_tier":"{echoed}"') == text.count("data: {")
        assert "service_tier" not in (await api.post(path, more))[1]


async def test_a_priority_goes_before_a_tier(make_api: Any) -> None:
    api = await make_api(scheduler=SchedulerConfig(enable_priority_scheduling=True))
    _, body, _ = await api.post(CHAT, {**BODY, "service_tier": "priority", "priority": 3})
    assert (api.engine.outputs[0].request.priority, body["service_tier"]) == (3, "default")
    status, body, _ = await api.post(CHAT, {**BODY, "service_tier": "gold"})
    assert status == 400
    assert_error(body, "invalid_value", "service_tier")


ALL = {"routing_key": "a", "prompt_cache_key": "b", "session_id": "e", "user": "f"}
HEADERS = {"X-SMG-Routing-Key": "c", "X-OpenWebUI-Chat-Id": "d"}


@pytest.mark.parametrize("first", range(6))
async def test_the_first_of_several_names_is_the_routing_key(api: Any, first: int) -> None:
    given = [name for name, _ in sorted({**ALL, **HEADERS}.items(), key=lambda one: one[1])][first:]
    fields = {name: value for name, value in ALL.items() if name in given}
    headers = {name: value for name, value in HEADERS.items() if name in given}
    assert (await api.post(CHAT, {**BODY, **fields}, headers=headers))[0] == 200
    assert api.engine.outputs[0].request.routing_key == "abcdef"[first]


async def test_long_names_are_digested_or_refused(api: Any) -> None:
    assert (await api.post(CHAT, {**BODY, "user": "u" * 500}))[0] == 200
    assert 0 < len(api.engine.outputs[0].request.routing_key) <= 128
    assert (await api.post(CHAT, {**BODY, "prompt_cache_key": "u" * 129}))[1]["error"]["param"] == "prompt_cache_key"


async def test_users_of_open_webui_are_tenants_where_there_are_no_keys(make_api: Any) -> None:
    open_api, keyed = await make_api(), await make_api(api_key=("k",))
    tenants = {}
    for api, headers in ((open_api, {}), (keyed, {"Authorization": "Bearer k"})):
        for user in ("", "ann", "bob", "ann"):
            named = {"X-OpenWebUI-User-Id": user} if user else {}
            assert (await api.post(CHAT, BODY, headers={**headers, **named}))[0] == 200
        tenants[api is keyed] = [output.request.tenant for output in api.engine.outputs]
    without, ann, bob, again = tenants[False]
    assert without == "" and ann == again != bob and "ann" not in ann
    assert len(set(tenants[True])) == 1, "with keys the key is the tenant, whatever a client says"


@pytest.mark.parametrize(("body", "header", "taken"), [("a", "", "a"), ("", "b", "b"), ("a", "b", "a"), ("", "", "")])
async def test_a_session_id_comes_from_the_body_or_the_header(api: Any, body: str, header: str, taken: str) -> None:
    fields, headers = {"session_id": body} if body else {}, {"X-Session-Id": header} if header else {}
    assert (await api.post(CHAT, {**BODY, **fields}, headers=headers))[0] == 200
    assert api.engine.outputs[-1].request.session_id == taken


async def test_a_long_session_id_is_refused(api: Any) -> None:
    for fields, headers in (({"session_id": "s" * 129}, {}), ({}, {"X-Session-Id": "s" * 129})):
        status, body, _ = await api.post(CHAT, {**BODY, **fields}, headers=headers)
        assert status == 400
        assert_error(body, "invalid_value", "session_id")
    assert (await api.post(CHAT, {**BODY, "session_id": "s" * 128}))[0] == 200
