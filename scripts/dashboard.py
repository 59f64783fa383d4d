"""The Grafana dashboard and Prometheus' alert rules; every metric is named by its row in the table of metrics."""

import json
from typing import Any, NamedTuple

from api_proc.admin.families import FAMILIES

WIDTH, HEIGHT, COLUMNS = 8, 8, 3
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECTOR = '{model_name="$model_name",instance=~"$instance"}'


class Query(NamedTuple):
    """One expression in PromQL, and the name of its line."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """One diagram."""

    title: str
    unit: str
    queries: tuple[Query, ...]


def metric(name: str, part: str = "") -> str:
    """Return a metric as a query names it, of the chosen model and instances. Raises KeyError for an unknown one."""
    return FAMILIES[name].exported + part + SELECTOR


def rate(name: str, by: str = "") -> str:
    """Return the growth of a counter per second."""
    return f"sum{_by(by)}(rate({metric(name)}[$__rate_interval]))"


def quantiles(name: str) -> tuple[Query, ...]:
    """Return the quantiles of a histogram."""
    buckets = f"sum by (le) (rate({metric(name, '_bucket')}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({share}, {buckets})", f"p{share * 100:.0f}") for share in (0.5, 0.9, 0.99))


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


def _now(name: str, legend: str, by: str = "") -> Query:
    return Query(f"sum{_by(by)}({metric(name)})", legend)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Traffic": (
        Panel("Finished requests", "reqps", (Query(rate("requests", "finish_reason"), "{{finish_reason}}"),)),
        Panel("Refused requests", "reqps", (Query(rate("requests_rejected", "reason"), "{{reason}}"),)),
        Panel("Tokens", "short", (Query(rate("prompt_tokens"), "prompt"), Query(rate("generation_tokens"), "output"))),
        Panel("HTTP", "reqps", (Query(rate("http_requests", "route, status"), "{{route}} {{status}}"),)),
        Panel("Length of prompts", "short", quantiles("request_prompt_tokens")),
        Panel("Length of outputs", "short", quantiles("request_generation_tokens")),
    ),
    "Latency": (
        Panel("Time to first token", "s", quantiles("time_to_first_token_seconds")),
        Panel("Between tokens", "s", quantiles("inter_token_latency_seconds")),
        Panel("Whole request", "s", quantiles("e2e_request_latency_seconds")),
        Panel("In the queue", "s", quantiles("request_queue_time_seconds")),
        Panel("Prefill", "s", quantiles("request_prefill_time_seconds")),
        Panel("Decode", "s", quantiles("request_decode_time_seconds")),
    ),
    "Queue and KV cache": (
        Panel(
            "Requests",
            "short",
            (_now("num_running_reqs", "running"), _now("num_queue_reqs_by_reason", "{{reason}}", "reason")),
        ),
        Panel(
            "KV tokens",
            "short",
            tuple(_now(f"kv_{one}_tokens", one) for one in ("used", "evictable", "available", "capacity")),
        ),
        Panel("KV used", "percentunit", (Query(f"max({metric('token_usage')})", "share"),)),
        Panel(
            "Cache hits",
            "percentunit",
            (Query(f"{rate('prefix_hits')} / {rate('prefix_queries')}", "of prompt tokens"),),
        ),
        Panel(
            "Retractions and preemptions",
            "short",
            (Query(rate("num_retracted_requests"), "retracted"), Query(rate("num_preempted_requests"), "preempted")),
        ),
        Panel("New-token ratio", "percentunit", (Query(f"max({metric('new_token_ratio')})", "ratio"),)),
        Panel("Why admission stops", "short", (Query(rate("passes_stopped", "reason"), "{{reason}}"),)),
        Panel("Computed again", "short", (Query(rate("recomputed_tokens"), "tokens"),)),
    ),
    "Processes": (
        Panel("Ready", "short", (_now("process_up", "{{role}}", "role"),)),
        Panel(
            "Restarts",
            "short",
            (Query(f"sum by (role, rank) (increase({metric('process_restarts')}[5m]))", "{{role}}-{{rank}}"),),
        ),
        Panel("Last recovery", "s", (Query(metric("process_last_recovery_seconds"), "{{role}}-{{rank}}"),)),
        Panel("Resident memory", "bytes", (Query(metric("process_resident_memory_bytes"), "{{process}}"),)),
        Panel("Processor", "percentunit", (Query(rate("process_cpu_seconds", "process"), "{{process}}"),)),
        Panel("Frames in an inbox", "short", (Query(metric("ipc_queue_depth"), "{{process}}"),)),
        Panel("Dropped frames", "short", (Query(rate("frames_dropped", "process, reason"), "{{process}} {{reason}}"),)),
        Panel("Start-up", "s", (Query(metric("process_start_up_seconds"), "{{process}}"),)),
    ),
}


def dashboard() -> str:
    """Return the dashboard as JSON."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "id": len(panels) + 1, "gridPos": _place(0, top, 24, 1)})
        for index, panel in enumerate(row):
            place = _place(index % COLUMNS * WIDTH, top + 1 + index // COLUMNS * HEIGHT, WIDTH, HEIGHT)
            panels.append(_panel(panel, len(panels) + 1, place))
        top += 1 + -(-len(row) // COLUMNS) * HEIGHT
    found = {
        "title": "Quartet",
        "uid": "quartet",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }
    return json.dumps(found, indent=1) + "\n"


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "id": number,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _variables() -> list[dict[str, Any]]:
    up = FAMILIES["process_up"].exported
    label = {"type": "query", "datasource": SOURCE, "refresh": 2}
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {**label, "name": "model_name", "query": f"label_values({up}, model_name)"},
        {**label, "name": "instance", "query": f"label_values({up}, instance)", "multi": True, "includeAll": True},
    ]
