"""OpenTelemetry: a span for each request that generates, with spans for its stages. Loaded by --otlp-traces-endpoint.

The span begins with the request, under the `traceparent` that it carries, and the response names it in its own
`traceparent`. The stages are added at the end, from the times that the scheduler has sent with the output.
"""

import json
from typing import Any

from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api_proc.server import request_ids
from api_proc.server.usage import UsageCounter
from quartet.version import __version__
from quartet.wire.frames import SamplingParams

SECOND_NS = 1_000_000_000
SETBACKS = frozenset({"retracted", "preempted", "requeued"})
"""Events of a timeline that put a request back into the queue."""


def otlp_processor(endpoint: str) -> SpanProcessor:
    """Return what sends spans by OTLP over HTTP, from a thread of its own."""
    host, _, path = endpoint.partition("://")[2].partition("/")
    target = endpoint if host and path else f"{endpoint.rstrip('/')}/v1/traces"
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=target))


class Tracing:
    """The spans of one api process.

    Args:
        processor: takes the finished spans.
        model: the name under which the model is served.
        process: the process's name.
    """

    def __init__(self, processor: SpanProcessor, model: str, process: str) -> None:
        service = {"service.name": "quartet", "service.version": __version__, "service.instance.id": process}
        self._provider = TracerProvider(resource=Resource.create(service))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("quartet", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def begin(self, request: web.Request, now: float) -> "RequestSpan":
        """Begin the span of a request, as a part of the trace that its headers name; `now` is that of the service."""
        parent = self._propagator.extract({name.lower(): value for name, value in request.headers.items()})
        resource = request.match_info.route.resource
        name = f"{request.method} {resource.canonical if resource else 'other'}"
        span = self._tracer.start_span(name, parent, kind=trace.SpanKind.SERVER)
        return RequestSpan(self._tracer, span, self._model, now)

    def close(self) -> None:
        """Send what is left. Blocks for seconds if the collector does not answer."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request."""

    def __init__(self, tracer: trace.Tracer, span: Any, model: str, started_s: float) -> None:
        self._started_s = started_s
        self._tracer = tracer
        self._span = span
        self._model = model

    @property
    def trace_id(self) -> str:
        """The id of the trace, as in a `traceparent`."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def headers(self) -> dict[str, str]:
        """Return the headers that name this span to what follows in the trace."""
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context())
        return carrier

    def end(
        self,
        request: web.Request,
        status: int,
        usage: UsageCounter | None,
        params: SamplingParams | None,
        timeline: bytes = b"",
    ) -> None:
        """End the span; `timeline` is the scheduler's answer about a request that was put back."""
        self._span.set_attribute("http.response.status_code", status)
        self._span.set_attribute("gen_ai.request.id", request_ids.of(request) or "")
        if status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)
        if params is not None:
            self._span.set_attributes(_request_attributes(params))
        if usage is not None:
            self._span.set_attributes(_usage_attributes(usage, self._model))
            self._add_stages(usage, timeline)
        self._span.end()

    def _context(self) -> Context:
        return trace.set_span_in_context(self._span)

    def _add_stages(self, usage: UsageCounter, timeline: bytes) -> None:
        """Add the stages one after the other; none ends after the last output."""
        queue_s, prefill_s, _ = usage.stages()
        last_s = usage.last_s or usage.accepted_s
        queued_s = usage.accepted_s
        admitted_s = min(queued_s + queue_s, last_s)
        decoding_s = min(admitted_s + prefill_s, last_s)
        begin_ns = self._span.start_time

        def at(moment_s: float) -> int:
            return int(begin_ns) + int((moment_s - self._started_s) * SECOND_NS)

        stages = [("tokenize", usage.start_s, queued_s), ("queue", queued_s, admitted_s)]
        stages += [("prefill", admitted_s, decoding_s), ("decode", decoding_s, last_s)] if usage.last_s else []
        for name, start_s, end_s in stages:
            span = self._tracer.start_span(name, self._context(), start_time=at(start_s))
            if name == "decode":
                for event in _setbacks(timeline):
                    details = {key: value for key, value in event.items() if key not in ("at_s", "event")}
                    span.add_event(event["event"], details, at(queued_s + event["at_s"]))
            span.end(at(max(start_s, end_s)))


def _setbacks(timeline: bytes) -> list[dict[str, Any]]:
    choices = json.loads(timeline).get("choices", []) if timeline else []
    return [event for choice in choices for event in choice["events"] if event["event"] in SETBACKS]


def _request_attributes(params: SamplingParams) -> dict[str, Any]:
    found = {
        "gen_ai.request.max_tokens": params.max_new_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
    }
    return {name: value for name, value in found.items() if value is not None}


def _usage_attributes(usage: UsageCounter, model: str) -> dict[str, Any]:
    """Return the attributes of a response: those that engines write, and those of the semantic conventions."""
    counts = usage.summary()
    queue_s, prefill_s, decode_s = usage.stages()
    choices = len(usage.counts)
    return {
        "gen_ai.provider.name": "quartet",
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": str(counts["finish"]).split("+"),
        "gen_ai.request.n": choices,
        "gen_ai.request.choice.count": choices,
        "gen_ai.usage.prompt_tokens": counts["prompt"],
        "gen_ai.usage.completion_tokens": counts["output"],
        "gen_ai.usage.cached_tokens": counts["cached"],
        "gen_ai.usage.input_tokens": counts["prompt"],
        "gen_ai.usage.output_tokens": counts["output"],
        "gen_ai.usage.cache_read.input_tokens": counts["cached"],
        "gen_ai.latency.time_in_queue": queue_s,
        "gen_ai.latency.time_in_model_prefill": prefill_s,
        "gen_ai.latency.time_in_model_decode": decode_s,
        "gen_ai.latency.time_to_first_token": float(counts["ttft_ms"]) / 1000.0,
        "gen_ai.latency.e2e": max(0.0, usage.last_s - usage.start_s) if usage.last_s else 0.0,
    }
