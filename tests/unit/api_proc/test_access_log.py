"""The access log and the log of requests: what a line says, and what is in none."""

import asyncio
import json
import logging
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from conftest import MakeApi
from fake_engine import finish, stay_silent

from api_proc.server.access_log import USAGE
from api_proc.server.middleware import status_of_cancelled
from api_proc.server.stats import ApiStats
from api_proc.server.usage import UsageCounter
from quartet.client.request import Output
from quartet.runtime.clock import MonotonicClock
from quartet.wire.monitoring import MonitoringConfig

CHAT = {"messages": [{"role": "user", "content": "a secret"}], "stream": True, "max_tokens": 2}


def lines(caplog: pytest.LogCaptureFixture, name: str) -> list[Any]:
    return [record for record in caplog.records if record.name == name and record.levelno >= logging.INFO]


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_a_line_for_each_request(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    await api.post("/v1/chat/completions", CHAT, headers={"X-Request-Id": "mine"})
    await api.post("/v1/completions", {"prompt": "x", "n": 2})
    await api.post("/v1/chat/completions", {"messages": []})
    await api.get("/no/such?key=hidden")
    streamed, whole, refused, unknown = lines(caplog, "quartet.access")
    assert (
        streamed.fields.items()
        >= {
            "method": "POST",
            "route": "/v1/chat/completions",
            "status": 200,
            "request_id": "mine",
            "prompt": 5,
            "cached": 3,
            "output": 2,
            "finish": "length",
            "queue_ms": 2.0,
        }.items()
    )
    assert streamed.fields["ms"] >= streamed.fields["ttft_ms"] >= 0
    message = streamed.getMessage()
    assert (
        message.startswith("POST /v1/chat/completions 200 ") and " prompt=5 cached=3 output=2 finish=length" in message
    )
    assert (whole.fields["output"], whole.fields["finish"]) == (8, "stop")
    assert (refused.fields["status"], "prompt" in refused.fields) == (400, False)
    assert (unknown.fields["route"], unknown.fields["status"]) == ("/no/such", 404)
    assert "secret" not in caplog.text and "hidden" not in caplog.text


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/loads"])
async def test_what_monitors_ask_for_is_not_logged(api: Any, caplog: pytest.LogCaptureFixture, path: str) -> None:
    await api.get(path)
    assert lines(caplog, "quartet.access") == []


async def test_a_client_that_leaves_is_logged(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    api.engine.script = stay_silent
    task = asyncio.create_task(api.post("/v1/completions", {"prompt": "x"}))
    await api.engine.arrived.wait()
    task.cancel()
    async with asyncio.timeout(10):
        while not (found := lines(caplog, "quartet.access")):
            await asyncio.sleep(0.005)
    assert (found[0].fields["status"], found[0].fields["finish"]) == (499, "unfinished")
    assert api.service.stats.http["/v1/completions", 499] == 1


def test_a_client_that_closes_after_the_last_event_has_not_left_early() -> None:
    request = make_mocked_request("POST", "/v1/completions")
    assert status_of_cancelled(request) == 499
    usage = UsageCounter([1], 1, 0.0, MonotonicClock(), ApiStats(), lambda: None)
    request[USAGE] = usage
    assert status_of_cancelled(request) == 499
    usage.add(0, [Output(0, [], "", None, finish())])
    assert status_of_cancelled(request) == 200


async def test_requests_are_logged_on_demand(make_api: MakeApi, caplog: pytest.LogCaptureFixture) -> None:
    api = await make_api(monitoring=MonitoringConfig(log_requests=True))
    await api.post("/v1/chat/completions", {**CHAT, "temperature": 0.5, "request_id": "r1"})
    (line,) = lines(caplog, "quartet.requests")
    found = json.loads(line.getMessage().removeprefix("request "))
    assert found == json.loads(bytes(line.fields["request"]))
    assert (found["request_id"], found["prompt_tokens"], found["choices"]) == ("r1", 5, 1)
    assert found["params"]["max_new_tokens"] == 2 and found["params"]["temperature"] == 0.5
    assert "secret" not in caplog.text


@pytest.mark.parametrize("prompt", ["a secret" + "." * 1000, [[1, 2, 3]]])
async def test_level_2_shows_the_beginning_of_prompts(
    make_api: MakeApi, caplog: pytest.LogCaptureFixture, prompt: Any
) -> None:
    api = await make_api(monitoring=MonitoringConfig(log_requests=True, log_requests_level=2))
    await api.post("/v1/completions", {"prompt": prompt})
    (line,) = lines(caplog, "quartet.requests")
    shown = json.loads(line.getMessage().removeprefix("request "))["prompt"]
    assert shown == "[1, 2, 3]" or (shown.startswith("a secret") and len(shown) == 300)


async def test_without_the_flag_requests_are_not_logged(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    await api.post("/v1/completions", {"prompt": "x"})
    assert lines(caplog, "quartet.requests") == []
