"""The section of the configuration that says what an operator sees: metrics, logs and traces."""

from typing import Annotated, Literal

from msgspec import Meta

from quartet.wire.section import Section


class MonitoringConfig(Section, frozen=True):
    """Metrics, logs and traces."""

    disable_metrics: Annotated[bool, Meta(description="serve no GET /metrics")] = False
    metrics_alias: Annotated[
        Literal["none", "vllm", "sglang"],
        Meta(description="metrics under the names of that engine, too; those that routers read"),
    ] = "none"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least severe messages to log")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Meta(description="lines of the log: text, or an object for each")
    ] = "text"
    log_requests: Annotated[bool, Meta(description="log parameters and lengths of requests")] = False
    otlp_traces_endpoint: Annotated[
        str, Meta(description="OpenTelemetry collector that takes traces over HTTP, such as http://127.0.0.1:4318")
    ] = ""
    log_requests_level: Annotated[
        int, Meta(ge=1, le=2, description="2: log the beginning of prompts, too; with --log-requests")
    ] = 1
