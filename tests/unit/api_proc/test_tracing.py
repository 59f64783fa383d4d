"""Traces: one span for each request with its stages, under the client's trace; without the package, one clear line."""

import itertools
import json
from typing import Any

import pytest
from conftest import Api, MakeApi

pytest.importorskip("opentelemetry.sdk")

from fake_engine import FakeOutputStream
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api_proc.server.tracing import Tracing
from quartet.client.request import Output
from quartet.wire.frames import Finish, Timings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0.5}


@pytest.fixture
async def traced(make_api: MakeApi) -> tuple[Api, InMemorySpanExporter]:
    api = await make_api()
    exporter = InMemorySpanExporter()
    api.service.tracing = Tracing(SimpleSpanProcessor(exporter), "toy", "api-0")
    return api, exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_request_has_a_span_with_its_stages(traced: tuple[Api, InMemorySpanExporter], is_stream: bool) -> None:
    api, exporter = traced
    status, _, headers = await api.post("/v1/chat/completions", {**BODY, "stream": is_stream}, headers=GIVEN)
    assert status == 200
    spans = by_name(exporter)
    root = spans.pop("POST /v1/chat/completions")
    assert f"{root.context.trace_id:032x}" == TRACE and f"{root.parent.span_id:016x}" == PARENT
    assert headers["traceparent"] == f"00-{TRACE}-{root.context.span_id:016x}-01"
    assert list(spans) == ["tokenize", "queue", "prefill", "decode"]
    assert all(span.parent.span_id == root.context.span_id for span in spans.values())
    stages = list(spans.values())
    assert all(one.end_time == after.start_time for one, after in itertools.pairwise(stages))
    assert all(root.start_time <= span.start_time <= span.end_time <= root.end_time for span in stages)
    wanted = {
        "http.response.status_code": 200,
        "gen_ai.request.id": "mine",
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.n": 1,
        "gen_ai.response.model": "toy",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.prompt_tokens": 5,
        "gen_ai.usage.completion_tokens": 2,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cached_tokens": 3,
        "gen_ai.latency.time_in_queue": 0.002,
        "gen_ai.latency.time_in_model_prefill": 0.01,
        "gen_ai.latency.time_in_model_decode": 0.03,
    }
    assert wanted.items() <= dict(root.attributes).items()


async def test_a_retraction_is_an_event_of_decode(traced: tuple[Api, InMemorySpanExporter]) -> None:
    api, exporter = traced

    async def script(output: FakeOutputStream) -> None:
        output.text("a")
        output.push(Output(0, [], "", None, Finish("stop", None, 1, Timings(retractions=1))))

    async def query(what: str, argument: str = "", tenant: str | None = None) -> bytes:
        assert (what, argument) == ("timeline", "mine")
        events = [{"at_s": 0.0, "event": "queued"}, {"at_s": 0.25, "event": "retracted", "shortage_tokens": 16}]
        return json.dumps({"rid": "x", "choices": [{"events": events}]}).encode()

    api.engine.script, api.engine.query = script, query  # type: ignore[method-assign]
    await api.post("/v1/chat/completions", BODY, headers=GIVEN)
    decode = by_name(exporter)["decode"]
    (event,) = decode.events
    assert (event.name, dict(event.attributes)) == ("retracted", {"shortage_tokens": 16})
    queued_ns = by_name(exporter)["tokenize"].end_time
    assert event.timestamp - queued_ns == pytest.approx(250_000_000, abs=1000)


async def test_a_refused_request_has_a_span_without_stages(traced: tuple[Api, InMemorySpanExporter]) -> None:
    api, exporter = traced
    await api.post("/v1/chat/completions", {"messages": []}, headers=GIVEN)
    await api.get("/v1/models", headers=GIVEN)
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None and span.attributes["http.response.status_code"] == 400


async def test_without_traces_headers_are_left_alone(api: Api) -> None:
    _, _, headers = await api.post("/v1/chat/completions", BODY, headers=GIVEN)
    assert "traceparent" not in headers
