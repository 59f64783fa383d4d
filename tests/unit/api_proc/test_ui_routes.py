"""The page at `/`, the stream that feeds it and the demonstration's route, in front of the fake engine."""

import asyncio
import json
import re
from typing import Any

import aiohttp
import pytest

from api_proc.ui.page import page
from quartet.wire.errors import RequestError
from quartet.wire.frames import ProcessStatus, ProcessTable, Snapshot
from quartet.wire.ids import Epoch, Role

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
BEARER = {"Authorization": "Bearer key-one"}


async def events(api: Any, count: int, headers: dict[str, str] | None = None) -> list[Any]:
    """Return the first events of the stream."""
    found = []
    async with api.http.get(api.url + "/ui/stream", headers=headers) as response:
        assert response.status == 200 and response.content_type == "text/event-stream"
        async for line in response.content:
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
                if len(found) == count:
                    break
    return found


# The page


async def test_a_browser_gets_the_page_and_other_clients_the_index(api: Any) -> None:
    async with api.http.get(api.url, headers=BROWSER) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert response.headers["Vary"] == "Accept"
        assert "<title>Quartet</title>" in await response.text()
    for accept in ("*/*", "application/json"):
        _, body, headers = await api.get("/", headers={"Accept": accept})
        assert body["name"] == "quartet" and headers["Vary"] == "Accept"


async def test_without_the_page_its_routes_do_not_exist(make_api: Any) -> None:
    api = await make_api(disable_ui=True, demo=True)
    status, body, _ = await api.get("/", headers=BROWSER)
    assert (status, body["name"]) == (200, "quartet")
    assert (await api.get("/ui/stream"))[0] == 404
    assert (await api.post("/ui/kill", {"process": "worker-0"}))[0] == 404


async def test_the_policy_admits_the_page_itself_and_nothing_else(api: Any) -> None:
    async with api.http.get(api.url, headers=BROWSER) as response:
        policy = response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert {"default-src 'none'", "connect-src 'self'", "require-trusted-types-for 'script'"} <= {*policy.split("; ")}
    assert "unsafe" not in policy and "http" not in policy
    assert len(re.findall(r"'sha256-[\w+/]{43}='", policy)) == 2


def test_the_page_loads_nothing_and_makes_no_html_of_text() -> None:
    text, _ = page()
    text = re.sub(r'href="data:[^"]+"', "", text)
    assert not re.findall(r"""(?:src|href)=["'](?!#)|\burl\(|@import|(?:https?:)?//[\w.]+\.\w+/""", text)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    assert not re.findall(r"""\s(?:on\w+|style)=["']""", text)


# The stream


async def test_an_event_has_the_load_the_processes_and_the_requests(api: Any) -> None:
    first, second = await events(api, 2)
    assert first["server"]["model"] == "toy" and first["server"]["is_demo"] is False
    assert "server" not in second
    _, loads, _ = await api.get("/v1/loads")
    shown = loads["loads"][0] | first["load"]
    assert shown == loads["loads"][0] and shown["num_running_reqs"] == 3
    assert [row["name"] for row in first["processes"]] == ["scheduler-0", "worker-0"]
    assert first["processes"][0]["reported_s"] >= 0 and first["processes"][1]["reported_s"] is None
    assert first["requests"] == {"what": "requests", "argument": "", "tenant": None}
    assert [point[0] for point in first["points"]] == [1] and second["points"] == []


async def test_each_point_is_sent_once(api: Any) -> None:
    (first,) = await events(api, 1)
    last = api.engine.snapshots["scheduler-0"]
    counters = {**last.counters, "retractions": last.counters["retractions"] + 2}
    api.engine.snapshots["scheduler-0"] = Snapshot(Role.SCHEDULER, 0, Epoch(1), dict(last.gauges), counters)
    found = [point for event in await events(api, 3) for point in event["points"]]
    assert [point[0] for point in found] == [1, 2]
    assert found[0] == first["points"][0] and found[1][7] == 2


async def test_only_the_requests_of_the_key_are_asked_for(make_api: Any) -> None:
    api = await make_api(api_key=("key-one",), admin_api_key=("root",))
    assert (await api.get("/ui/stream"))[0] == 401
    (own,) = await events(api, 1, BEARER)
    (all_of_them,) = await events(api, 1, {"Authorization": "Bearer root"})
    assert own["requests"]["tenant"] and all_of_them["requests"]["tenant"] is None


async def test_pages_share_one_query_and_without_a_page_there_is_none(api: Any) -> None:
    asked = []

    async def query(what: str, argument: str = "", tenant: str | None = None) -> bytes:
        asked.append(what)
        return b"{}"

    api.engine.query = query
    await asyncio.sleep(0.6)
    assert asked == []
    found = await asyncio.gather(*(events(api, 2) for _ in range(5)))
    assert all(event["requests"] == {} for one in found for event in one)
    assert asked == ["requests"] * len(asked) and len(asked) <= 4


async def test_without_an_answer_of_the_scheduler_the_rest_is_shown(api: Any) -> None:
    async def never(what: str, argument: str = "", tenant: str | None = None) -> bytes:
        await asyncio.sleep(60)
        return b""

    async def refused(what: str, argument: str = "", tenant: str | None = None) -> bytes:
        raise RequestError(503, "engine_restarting", "The scheduler did not answer.")

    for query in (never, refused):
        api.engine.query = query
        first, second = await events(api, 2)
        assert first["requests"] is second["requests"] is None and second["processes"]


async def test_the_stream_ends_with_a_drain(api: Any) -> None:
    async with api.http.get(api.url + "/ui/stream") as response:
        await response.content.readline()
        api.service.is_draining = True
        async with asyncio.timeout(5):
            await response.read()


# The demonstration


async def test_the_route_that_kills_exists_in_a_demonstration_alone(api: Any) -> None:
    assert (await api.post("/ui/kill", {"process": "worker-0"}))[0] == 404


async def test_a_process_is_killed_by_its_name(make_api: Any) -> None:
    api = await make_api(demo=True)
    child = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        rows = [ProcessStatus(Role.WORKER, 0, child.pid, Epoch(1), "ready", "", 0)]
        rows.append(ProcessStatus(Role.DETOK, 0, 0, Epoch(1), "down", "", 0))
        api.engine.process_table = ProcessTable(rows, False)
        for other in ({}, {"process": "worker-1"}, {"process": 3}):
            assert (await api.post("/ui/kill", other))[0] == 400
        assert (await api.post("/ui/kill", {"process": "detok-0"}))[0] == 503
        elsewhere = {"Sec-Fetch-Site": "cross-site"}
        assert (await api.post("/ui/kill", {"process": "worker-0"}, headers=elsewhere))[0] == 403
        assert child.returncode is None
        status, body, _ = await api.post("/ui/kill", {"process": "worker-0"})
        assert (status, body) == (200, {"killed": "worker-0", "pid": child.pid})
        assert await asyncio.wait_for(child.wait(), 10) == -9
    finally:
        if child.returncode is None:
            child.kill()


@pytest.mark.parametrize("accept", ["text/html", "text/event-stream"])
async def test_a_page_of_another_origin_reads_nothing(api: Any, accept: str) -> None:
    timeout = aiohttp.ClientTimeout(total=5)
    headers = {"Origin": "https://evil.example", "Accept": accept}
    for path in ("/", "/ui/stream"):
        async with api.http.get(api.url + path, headers=headers, timeout=timeout) as response:
            assert "Access-Control-Allow-Origin" not in response.headers
