"""Prometheus metrics, from the newest Snapshot of each process and this process's own numbers.

Names get the prefix `quartet_`, counters the suffix `_total`, samples the label `process`. A metric's key is its name,
with further labels in braces where it has some; `x_bucket{le="..."}`, `x_sum` and `x_count` among the counters form
the histogram `x`.
"""

import re
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from api_proc.server.service import Service
from quartet.runtime.core import Metrics

__all__ = ["CONTENT_TYPE", "exposition", "own_metrics"]

PREFIX = "quartet_"

_KEY = re.compile(r"^(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)(?:\{(?P<labels>[^\n{}]*)\})?$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_HISTOGRAM_PART = re.compile(r"_(bucket|sum|count)$")


def exposition(service: Service) -> bytes:
    """Return the metrics of the whole service as this process has received them, in Prometheus' text format."""
    return generate_latest(ServiceCollector(service))


def own_metrics(service: Service) -> Metrics:
    """Return this process's numbers together with its engine client's, for its own Snapshot."""
    engine = service.engine.journal_metrics()
    recorded = service.recordings.metrics()
    gauges = {**engine.gauges, **recorded.gauges}
    gauges["open_requests"] = len(service.open)
    gauges["api_admitted_choices"] = service.admission.num_admitted
    gauges["api_waiting_choices"] = service.admission.num_waiting
    gauges["api_large_body_bytes"] = service.admission.large_bytes
    counters = {**engine.counters, **recorded.counters, **service.stats.counters(), **service.dropped_frames()}
    if service.connections is not None:
        gauges["connections"] = service.connections.count
        counters["connections_refused"] = service.connections.refused
        counters["connections_stalled"] = service.connections.stalled
    return Metrics(gauges, counters)


class ServiceCollector(Collector):
    """Collects one exposition; made for each, and registered nowhere."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._families: dict[str, Metric] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield every family once, by name."""
        engine = self._service.engine
        processes = {name: Metrics(one.gauges, one.counters) for name, one in engine.snapshots.items()}
        # This process's own numbers are newer than those of its last Snapshot.
        processes[self._service.name] = own_metrics(self._service)
        for name, numbers in sorted(processes.items()):
            self._add_process(name, numbers)
        for one in engine.process_table.processes:
            labels = {"role": one.role.label, "rank": str(one.rank)}
            self._add(GaugeMetricFamily, "process_up", "process_up", labels, float(one.state == "ready"))
            self._add(CounterMetricFamily, "process_restarts", "process_restarts_total", labels, one.restarts)
            name = "process_last_recovery_seconds"
            self._add(GaugeMetricFamily, name, name, labels, one.recovery_s)
        yield from (self._families[name] for name in sorted(self._families))

    def _add_process(self, process: str, numbers: Metrics) -> None:
        histograms = {key.partition("_bucket{")[0] for key in numbers.counters if "_bucket{" in key}
        for key, value in numbers.gauges.items():
            if parts := _parts(key, process):
                name, labels = parts
                self._add(GaugeMetricFamily, name, name, labels, value)
        for key, value in numbers.counters.items():
            if parts := _parts(key, process):
                name, labels = parts
                family = _HISTOGRAM_PART.sub("", name)
                if family in histograms:
                    self._add(HistogramMetricFamily, family, name, labels, value)
                else:
                    self._add(CounterMetricFamily, name, f"{name}_total", labels, value)

    def _add(
        self, kind: Callable[[str, str], Metric], family: str, sample: str, labels: dict[str, str], value: float
    ) -> None:
        metric = self._families.get(family)
        if metric is None:
            metric = self._families[family] = kind(PREFIX + family, "")
        metric.add_sample(PREFIX + sample, labels, value)


def _parts(key: str, process: str) -> tuple[str, dict[str, str]] | None:
    """Return name and labels of a metric's key, or None for one that Prometheus could not read."""
    match = _KEY.match(key)
    if match is None:
        return None
    return match["name"], {"process": process, **dict(_LABEL.findall(match["labels"] or ""))}
