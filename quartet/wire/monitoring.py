"""The section of the configuration that says what an operator sees: metrics, logs and traces."""

from typing import Annotated, Literal

from msgspec import Meta

from quartet.wire.section import Section


class MonitoringConfig(Section, frozen=True):
    """Metrics, logs and traces."""

    disable_metrics: Annotated[bool, Meta(description="serve no GET /metrics")] = False
    metrics_alias: Annotated[
        Literal["none", "vllm", "sglang"],
        Meta(description="export the metrics that routers read under that engine's names, too"),
    ] = "none"
