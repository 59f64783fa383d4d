"""Prometheus' alert rules and an example of its configuration, as YAML; metrics are named by their row in the table."""

from typing import Any, NamedTuple

import yaml

from api_proc.admin.families import FAMILIES


class Alert(NamedTuple):
    """One rule: it fires when the expression has given something for `minutes`."""

    name: str
    severity: str
    minutes: int
    expression: str
    summary: str


def _name(family: str, part: str = "") -> str:
    return FAMILIES[family].exported + part


ALERTS = (
    Alert("QuartetDown", "page", 1, 'up{job="quartet"} == 0', "no metrics from {{ $labels.instance }}"),
    Alert(
        "QuartetProcessDown",
        "page",
        2,
        f"{_name('process_up')} == 0",
        "{{ $labels.role }}-{{ $labels.rank }} has not been ready for two minutes",
    ),
    Alert(
        "QuartetRestarts",
        "ticket",
        0,
        f"increase({_name('process_restarts')}[15m]) > 0",
        "{{ $labels.role }}-{{ $labels.rank }} has died; the log has the cause",
    ),
    Alert(
        "QuartetQueueTime",
        "ticket",
        5,
        f"histogram_quantile(0.95, sum by (le, instance) (rate({_name('request_queue_time_seconds', '_bucket')}[5m])))"
        " > 10",
        "one request in twenty waits for more than 10 s",
    ),
    Alert(
        "QuartetRefusals",
        "ticket",
        5,
        f'sum by (instance) (rate({_name("requests_rejected")}{{reason="queue_full"}}[5m])) > 0',
        "requests are refused because the queue is full",
    ),
    Alert(
        "QuartetRetractions",
        "ticket",
        10,
        f"rate({_name('recomputed_tokens')}[10m]) > 0.1 * rate({_name('prefill_tokens')}[10m])",
        "a tenth of prefill is computed again: the KV cache is too small for this traffic",
    ),
    Alert(
        "QuartetFramesDropped",
        "ticket",
        0,
        f'increase({_name("frames_dropped")}{{reason!="stale"}}[15m]) > 0',
        "{{ $labels.process }} has dropped frames: {{ $labels.reason }}",
    ),
)


def rules() -> str:
    """Return the rules, as `rule_files` names them."""
    made: list[dict[str, Any]] = []
    for alert in ALERTS:
        rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expression}
        if alert.minutes:
            rule["for"] = f"{alert.minutes}m"
        made.append({**rule, "labels": {"severity": alert.severity}, "annotations": {"summary": alert.summary}})
    return _yaml({"groups": [{"name": "quartet", "rules": made}]})


def scrape_example() -> str:
    """Return an example of prometheus.yml."""
    job = {"job_name": "quartet", "scrape_interval": "5s", "static_configs": [{"targets": ["127.0.0.1:30000"]}]}
    return _yaml({"rule_files": ["alerts.yml"], "scrape_configs": [job]})


def _yaml(content: dict[str, Any]) -> str:
    return str(yaml.safe_dump(content, sort_keys=False, width=1000))
