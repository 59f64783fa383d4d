"""The figures of a run from its records, by the definitions and under the names of vLLM's client.

    ttft   request sent to first output
    tpot   (last output - first output) / (output tokens - 1), of requests with two tokens or more
    itl    gap between two events with output, of all requests together
    e2el   request sent to last output

Percentiles are linear between neighbours. Only requests that succeeded count, except in `failed` and `errors`.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quartet.bench.plan import Record

METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
Values = NDArray[np.float64]


def figures(
    records: Sequence[Record],
    duration_s: float,
    percentiles: Sequence[float] = (99.0,),
    goodput_ms: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the figures of a run that took `duration_s`; `goodput_ms` has a bound for each metric that counts."""
    good = [record for record in records if not record.failure]
    inputs, outputs, cached = (
        sum(getattr(record, name) for record in good) for name in ("input_tokens", "output_tokens", "cached_tokens")
    )
    tokens, active = by_second(good)
    found: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(good),
        "failed": len(records) - len(good),
        "errors_by_kind": dict(Counter(record.failure for record in records if record.failure).most_common()),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "total_cached_tokens": cached,
        "request_throughput": len(good) / duration_s,
        "input_throughput": inputs / duration_s,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (inputs + outputs) / duration_s,
        "max_output_tokens_per_s": float(tokens.max(initial=0)),
        "max_concurrent_requests": int(active.max(initial=0)),
        "request_goodput": _goodput(good, goodput_ms) / duration_s if goodput_ms else None,
    }
    for name in METRICS:
        found |= _summary(name, values_of(name, good) * 1000, percentiles)
    return found


def values_of(metric: str, records: Sequence[Record]) -> Values:
    """Return all values of a metric in seconds."""
    if metric == "itl":
        return np.array([gap for record in records for gap in record.itl_s])
    if metric == "tpot":
        return np.array([_tpot_s(record) for record in records if record.output_tokens > 1])
    name = {"ttft": "ttft_s", "e2el": "latency_s"}[metric]
    return np.array([getattr(record, name) for record in records])


def _tpot_s(record: Record) -> float:
    """Return the time per output token; 0 for a single token, which goodput takes as met."""
    gaps = record.output_tokens - 1
    return (record.latency_s - record.ttft_s) / gaps if gaps > 0 else 0.0


def _goodput(records: Sequence[Record], bounds_ms: Mapping[str, float]) -> int:
    def is_good(record: Record) -> bool:
        times_s = {"ttft": record.ttft_s, "tpot": _tpot_s(record), "e2el": record.latency_s}
        return all(times_s[name] * 1000 <= bound for name, bound in bounds_ms.items())

    return sum(map(is_good, records))


def _summary(name: str, values: Values, percentiles: Sequence[float]) -> dict[str, float | None]:
    if not len(values):
        facts: dict[str, float | None] = dict.fromkeys(("mean", "median", "std"))
        return {f"{fact}_{name}_ms": value for fact, value in facts.items()} | {
            f"p{share:g}_{name}_ms": None for share in percentiles
        }
    found = {"mean": values.mean(), "median": np.median(values), "std": values.std()}
    found |= {f"p{share:g}": np.percentile(values, share) for share in percentiles}
    return {f"{fact}_{name}_ms": float(value) for fact, value in found.items()}


def by_second(records: Sequence[Record]) -> tuple[Values, Values]:
    """Return, for each second from the first request, the events with output and the requests in flight in it."""
    if not records:
        return np.zeros(0), np.zeros(0)
    origin_s = min(record.start_s for record in records)
    seconds = math.ceil(max(record.start_s + record.latency_s for record in records) - origin_s) + 1
    tokens, active = np.zeros(seconds), np.zeros(seconds)
    for record in records:
        begin_s = record.start_s - origin_s
        times = begin_s + record.ttft_s + np.cumsum([0.0, *record.itl_s])
        np.add.at(tokens, np.minimum(times.astype(int), seconds - 1), 1)
        active[int(begin_s) : int(begin_s + record.latency_s) + 1] += 1
    return tokens, active


LATE_LIMIT_S = 0.02
CPU_LIMIT = 0.85


def client_facts(records: Sequence[Record], cpu_shares: Sequence[float]) -> dict[str, Any]:
    """Return how well the client kept to the schedule, the most of a core it used, and how long requests waited."""
    late = np.array([record.late_s for record in records]) * 1000
    queued = np.array([record.queued_s for record in records]) * 1000
    return {
        "median_lateness_ms": float(np.median(late)),
        "p99_lateness_ms": float(np.percentile(late, 99)),
        "mean_client_queue_time_ms": float(queued.mean()),
        "client_cpu_share": max(cpu_shares),
        "client_processes": len(cpu_shares),
    }


def client_warnings(facts: Mapping[str, Any], is_scheduled: bool) -> list[str]:
    """Say in one line each why the client may have limited the figures; `is_scheduled`: requests had times."""
    found = []
    advice = f"give --client-processes {2 * facts['client_processes']}, or leave the client a core of its own"
    if is_scheduled and facts["p99_lateness_ms"] > LATE_LIMIT_S * 1000:
        found.append(f"the client was late: p99 {facts['p99_lateness_ms']:.1f} ms after the schedule; {advice}")
    if facts["client_cpu_share"] > CPU_LIMIT:
        found.append(f"a client process used {facts['client_cpu_share']:.0%} of a core and may be the limit; {advice}")
    return found
