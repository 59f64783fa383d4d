"""Prometheus' text format, from the newest Snapshot of each process and this process's own numbers.

Names get the prefix `quartet_`, counters the suffix `_total`, samples the label `process`. A name may bring labels of
its own in braces; `x_bucket{le="..."}`, `x_sum` and `x_count` among the counters form the histogram `x`.
"""

import re
from collections.abc import Iterable

from api_proc.server.service import Service
from quartet.runtime.actor import Metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "quartet_"

_NAME = re.compile(r"^(?P<name>[a-zA-Z_][a-zA-Z0-9_]*)(?:\{(?P<labels>[^\n{}]*)\})?$")
_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


class Exposition:
    """Collects samples by family and writes them, each family once."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, list[str]]] = {}

    def gauge(self, name: str, labels: str, value: float) -> None:
        """Add a sample of a gauge; `labels` is the text between the braces."""
        self._add(name, "gauge", name, labels, value)

    def counter(self, name: str, labels: str, value: float) -> None:
        """Add a sample of a counter, named without `_total`."""
        self._add(f"{name}_total", "counter", f"{name}_total", labels, value)

    def histogram(self, family: str, name: str, labels: str, value: float) -> None:
        """Add one of the samples of a histogram."""
        self._add(family, "histogram", name, labels, value)

    def text(self) -> str:
        """Return the exposition."""
        lines: list[str] = []
        for family, (kind, samples) in sorted(self._families.items()):
            lines.append(f"# TYPE {PREFIX}{family} {kind}")
            lines.extend(samples)
        return "\n".join(lines) + "\n"

    def _add(self, family: str, kind: str, name: str, labels: str, value: float) -> None:
        samples = self._families.setdefault(family, (kind, []))[1]
        samples.append(f"{PREFIX}{name}{{{labels}}} {_number(value)}")


def exposition(service: Service) -> str:
    """Return the metrics of the whole service as this process knows them."""
    result = Exposition()
    processes = {name: Metrics(one.gauges, one.counters) for name, one in service.engine.snapshots.items()}
    # This process knows its own numbers better than its last Snapshot does.
    processes[service.name] = own_metrics(service)
    for name, numbers in sorted(processes.items()):
        _add_process(result, name, numbers)
    for one in service.engine.process_table.processes:
        labels = f'role="{one.role.label}",rank="{one.rank}"'
        result.gauge("process_up", labels, float(one.state == "ready"))
        result.counter("process_restarts", labels, one.restarts)
    return result.text()


def own_metrics(service: Service) -> Metrics:
    """Return this process's numbers together with its engine client's, for its own Snapshot."""
    engine = service.engine.journal_metrics()
    gauges = dict(engine.gauges)
    gauges["open_requests"] = len(service.open)
    return Metrics(gauges, {**engine.counters, **service.stats.counters()})


def _add_process(result: Exposition, process: str, numbers: Metrics) -> None:
    histograms = set(_histogram_families(numbers.counters))
    for key, value in numbers.gauges.items():
        if parts := _parts(key, process):
            result.gauge(*parts, value)
    for key, value in numbers.counters.items():
        if not (parts := _parts(key, process)):
            continue
        family = _without_part(parts[0])
        if family in histograms:
            result.histogram(family, *parts, value)
        else:
            result.counter(*parts, value)


def _histogram_families(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        if "_bucket{" in name:
            yield name.partition("_bucket{")[0]


def _without_part(name: str) -> str:
    for part in _HISTOGRAM_PARTS:
        if name.endswith(part):
            return name.removesuffix(part)
    return ""


def _parts(key: str, process: str) -> tuple[str, str] | None:
    """Return name and labels of a metric key, or None for one that Prometheus could not read."""
    match = _NAME.match(key)
    if match is None:
        return None
    own = match["labels"]
    return match["name"], f'process="{process}"' + (f",{own}" if own else "")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
