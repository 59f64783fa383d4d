"""Routes that query the scheduler."""

import pytest


@pytest.mark.parametrize(
    ("method", "path", "what", "argument"),
    [
        ("GET", "/config", "config", ""),
        ("GET", "/trace", "trace", ""),
        ("POST", "/flush_cache", "flush", ""),
        ("GET", "/flush_cache", "flush", ""),
        ("GET", "/requests/chatcmpl-00FF/timeline", "timeline", "chatcmpl-00FF"),
        ("GET", "/requests/my%20id/timeline", "timeline", "my id"),
    ],
)
async def test_queries_are_passed_on(api, method, path, what, argument):
    async with api.http.request(method, api.url + path) as response:
        assert response.status == 200
        assert await response.json() == {"what": what, "argument": argument, "tenant": None}


async def test_an_unknown_request_is_404(api):
    status, answer, _ = await api.get("/requests/gone/timeline")
    assert status == 404
    assert answer["error"]["code"] == "not_found"


async def test_routing_fields_reach_the_engine(make_api):
    api = await make_api(api_key=("alpha", "beta"))
    body = {"prompt": "x", "max_tokens": 1, "priority": 7, "routing_key": "blue", "weight": 2.5, "cache_salt": "s"}
    tenants = []
    for key in ("alpha", "beta", "alpha"):
        status, _, _ = await api.post("/v1/completions", body, headers={"Authorization": f"Bearer {key}"})
        assert status == 200
        request = api.engine.outputs[-1].request
        assert (request.priority, request.routing_key, request.weight, request.cache_salt) == (7, "blue", 2.5, "s")
        tenants.append(request.tenant)
    assert tenants[0] == tenants[2] != tenants[1] and "alpha" not in tenants[0]


@pytest.mark.parametrize(("field", "value"), [("weight", 0), ("weight", -1), ("routing_key", "x" * 200)])
async def test_wrong_routing_fields_are_refused(api, field, value):
    status, answer, _ = await api.post("/v1/completions", {"prompt": "x", field: value})
    assert status == 400 and answer["error"]["param"] == field
