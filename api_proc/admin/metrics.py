"""Prometheus metrics, from the newest Snapshot of each process and this process's own numbers.

What is exported is defined in `families`; `aliases` gives some of it foreign names. A key of a Snapshot is a metric's
name, with its labels in braces where it has some; `x_bucket{le="..."}`, `x_sum` and `x_count` among the counters form
the histogram `x`.
"""

import re
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from api_proc.admin.aliases import ALIASES, EXTRA_LABELS, Alias
from api_proc.admin.families import FAMILIES, PREFIX, Family, by_key
from api_proc.server.admission import SCHEDULER
from api_proc.server.service import Service
from quartet.runtime.core import Metrics

__all__ = ["CONTENT_TYPE", "exposition", "own_metrics"]

KINDS: dict[str, Callable[[str, str], Metric]] = {
    "gauge": GaugeMetricFamily,
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
}
BY_KEY = by_key()

_KEY = re.compile(r"^(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)(?:\{(?P<labels>[^\n{}]*)\})?$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_HISTOGRAM_PART = re.compile(r"_(?:bucket|sum|count)$")


def exposition(service: Service) -> bytes:
    """Return the metrics of the whole service as this process has received them, in Prometheus' text format."""
    return generate_latest(ServiceCollector(service))


def own_metrics(service: Service) -> Metrics:
    """Return this process's numbers together with its engine client's, for its own Snapshot."""
    engine = service.engine.journal_metrics()
    recorded = service.recordings.metrics()
    process = service.process_metrics()
    gauges = {**engine.gauges, **recorded.gauges, **process.gauges}
    gauges["open_requests"] = len(service.open)
    gauges["api_admitted_choices"] = service.admission.num_admitted
    gauges["api_waiting_choices"] = service.admission.num_waiting
    gauges["api_large_body_bytes"] = service.admission.large_bytes
    counters = {**engine.counters, **recorded.counters, **service.stats.counters(), **process.counters}
    if service.connections is not None:
        gauges["connections"] = service.connections.count
        counters["connections_refused"] = service.connections.refused
        counters["connections_stalled"] = service.connections.stalled
    return Metrics(gauges, counters)


class ServiceCollector(Collector):
    """Collects one exposition; made for each, and registered nowhere.

    A key without a definition is exported without help, so that it is seen; a test finds none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._model = {"model_name": service.model_name}
        self._families: dict[str, Metric] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield every family once, by name, and then the aliases."""
        engine = self._service.engine
        processes = {name: Metrics(one.gauges, one.counters) for name, one in engine.snapshots.items()}
        # This process's own numbers are newer than those of its last Snapshot.
        processes[self._service.name] = own_metrics(self._service)
        for name, numbers in sorted(processes.items()):
            self._add_process(name, numbers)
        self._add_derived(processes.get(SCHEDULER))
        for one in engine.process_table.processes:
            labels = {"role": one.role.label, "rank": str(one.rank)}
            self._add(FAMILIES["process_up"], labels, float(one.state == "ready"))
            self._add(FAMILIES["process_restarts"], labels, one.restarts)
            self._add(FAMILIES["process_last_recovery_seconds"], labels, one.recovery_s)
        yield from (self._families[name] for name in sorted(self._families))
        chosen = self._service.config.monitoring.metrics_alias
        for alias in ALIASES[chosen]:
            if alias.family in self._families:
                yield _renamed(self._families[alias.family], alias, EXTRA_LABELS[chosen])

    def _add_process(self, process: str, numbers: Metrics) -> None:
        for kind, values in (("gauge", numbers.gauges), ("counter", numbers.counters)):
            for key, value in values.items():
                match = _KEY.match(key)
                if match is None:
                    continue
                name, labels = match["name"], dict(_LABEL.findall(match["labels"] or ""))
                part = _HISTOGRAM_PART.search(name)
                if part and _HISTOGRAM_PART.sub("", name) in FAMILIES:
                    self._add(FAMILIES[_HISTOGRAM_PART.sub("", name)], {"process": process, **labels}, value, part[0])
                    continue
                for family in BY_KEY.get(name) or [Family(name, kind, "")]:
                    self._add(family, {"process": process, **labels}, value)

    def _add_derived(self, scheduler: Metrics | None) -> None:
        """Add what follows from the scheduler's numbers."""
        if scheduler is None:
            return
        labels = {"process": SCHEDULER}
        counters, page_size = scheduler.counters, self._service.config.worker.page_size
        rate = self._service.output_rate.per_second(counters.get("output_tokens", 0.0))
        self._add(FAMILIES["gen_throughput"], labels, rate)
        queries = counters.get("input_tokens", 0.0)
        hits = counters.get("cached_tokens", 0.0)
        self._add(FAMILIES["cache_hit_rate"], labels, hits / queries if queries else 0.0)
        pages = int(scheduler.gauges.get("kv_capacity_tokens", 0.0)) // page_size
        sizes = {"page_size": str(page_size), "num_pages": str(pages)}
        self._add(FAMILIES["cache_config_info"], {**labels, **sizes}, 1.0)

    def _add(self, family: Family, labels: dict[str, str], value: float, part: str = "") -> None:
        metric = self._families.get(family.name)
        if metric is None:
            metric = self._families[family.name] = KINDS[family.kind](PREFIX + family.name, family.help)
        metric.add_sample(family.exported + part, {**self._model, **labels}, value)


def _renamed(metric: Metric, alias: Alias, extra: dict[str, str]) -> Metric:
    """Return a family under a foreign name, summed over the processes."""
    made = KINDS[metric.type](alias.name, metric.documentation)
    names = {"process": "", **dict(alias.labels)}
    sums: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for sample in metric.samples:
        labels = {names.get(label, label): value for label, value in sample.labels.items()}
        labels.pop("", None)
        name = alias.name + sample.name.removeprefix(metric.name)
        key = name, frozenset({**labels, **extra}.items())
        sums[key] = sums.get(key, 0.0) + sample.value
    for (name, pairs), value in sums.items():
        made.add_sample(name, dict(sorted(pairs)), value)
    return made
