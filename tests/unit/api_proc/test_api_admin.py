"""The routes that pass a question on to the scheduler."""

import pytest


@pytest.mark.parametrize(
    ("method", "path", "what", "argument"),
    [
        ("GET", "/config", "config", ""),
        ("GET", "/trace", "trace", ""),
        ("POST", "/flush_cache", "flush", ""),
        ("GET", "/requests/chatcmpl-00FF/timeline", "timeline", "00ff"),
        ("GET", "/requests/00ff/timeline", "timeline", "00ff"),
    ],
)
async def test_questions_are_passed_on(edge, method, path, what, argument):
    async with edge.http.request(method, edge.url + path) as response:
        assert response.status == 200
        assert await response.json() == {"what": what, "argument": argument}


async def test_an_unknown_request_is_404(edge):
    status, answer, _ = await edge.get("/requests/gone/timeline")
    assert status == 404
    assert answer["error"]["code"] == "not_found"


async def test_a_request_says_where_it_belongs(make_edge):
    edge = await make_edge(api_key=("alpha", "beta"))
    body = {"prompt": "x", "max_tokens": 1, "priority": 7, "routing_key": "blue", "weight": 2.5, "cache_salt": "s"}
    tenants = []
    for key in ("alpha", "beta", "alpha"):
        status, _, _ = await edge.post("/v1/completions", body, headers={"Authorization": f"Bearer {key}"})
        assert status == 200
        request = edge.engine.outputs[-1].request
        assert (request.priority, request.routing_key, request.weight, request.cache_salt) == (7, "blue", 2.5, "s")
        tenants.append(request.tenant)
    assert tenants[0] == tenants[2] != tenants[1] and "alpha" not in tenants[0]


@pytest.mark.parametrize(("field", "value"), [("weight", 0), ("weight", -1), ("routing_key", "x" * 200)])
async def test_wrong_places_are_refused(edge, field, value):
    status, answer, _ = await edge.post("/v1/completions", {"prompt": "x", field: value})
    assert status == 400 and answer["error"]["param"] == field
