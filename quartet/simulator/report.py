"""The metrics of a run: those of the live engine, and those that need the whole run."""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

from quartet.simulator.driver import SimulatedEngine
from quartet.simulator.record import Gaps, Outcome, Run


class Summary(msgspec.Struct, frozen=True):
    """Mean, percentiles (between neighbours, linearly) and maximum; None of nothing."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of one run. Seconds are virtual.

    `prefix_hit_rate`: cached tokens over input tokens, at each request's first admission.
    `ttft_s`, `tpot_s`, `e2e_s`: arrival to first token; mean gap of one request; arrival to end; of finished requests.
    `gap_s`: every gap between two tokens of a request.
    `overtaken`: admitting steps that a request of the class watched while a later arrival went ahead of it.
    `recomputed_tokens`: computed again after a retraction or preemption.
    `fairness`: Jain's index over the tenants' mean slow-down against an idle engine: 1 is equal, 1/n is one for all.
    `mean_running`: over the time in which anything ran.
    """

    requests: int
    finished: int
    rejected: int
    failed: int
    duration_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    prefix_hit_rate: float
    ttft_s: Summary
    tpot_s: Summary
    e2e_s: Summary
    gap_s: Summary
    e2e_s_by_class: dict[str, Summary]
    ttft_s_by_class: dict[str, Summary]
    gap_s_by_class: dict[str, Summary]
    ttft_s_by_tenant: dict[str, Summary]
    overtaken: Summary
    overtaken_by_class: dict[str, Summary]
    retractions: int
    preemptions: int
    recomputed_tokens: int
    wasted_rows: int
    fairness: float
    mean_running: float
    max_queued: int
    max_kv_used_tokens: int
    steps: int


def make_report(run: Run, engine: SimulatedEngine, chunk_tokens: int) -> Report:
    """Return the metrics of a run. `chunk_tokens` is the prefill chunk, for the time a request would take alone."""
    outcomes = run.outcomes
    finished = [outcome for outcome in outcomes if outcome.is_finished]
    admitted = [outcome for outcome in outcomes if outcome.admissions]
    overtaken = dict(zip(run.admission_order, count_overtaken(run), strict=True))
    output_tokens = sum(outcome.output_tokens for outcome in outcomes)
    input_tokens = sum(outcome.request.input_tokens for outcome in admitted)
    duration_s = run.end_s - min((outcome.arrival_s for outcome in outcomes), default=0.0)
    return Report(
        requests=len(outcomes),
        finished=len(finished),
        rejected=sum(outcome.is_rejected for outcome in outcomes),
        failed=len(outcomes) - len(finished) - sum(outcome.is_rejected for outcome in outcomes),
        duration_s=duration_s,
        output_tokens_per_s=_share(output_tokens, duration_s),
        total_tokens_per_s=_share(output_tokens + input_tokens, duration_s),
        prefix_hit_rate=_share(sum(outcome.cached_tokens for outcome in admitted), input_tokens),
        ttft_s=summarise(_ttft(outcome) for outcome in finished),
        tpot_s=summarise(_tpot(outcome) for outcome in finished if outcome.output_tokens > 1),
        e2e_s=summarise(_e2e(outcome) for outcome in finished),
        gap_s=summarise_gaps(run.gaps.values()),
        e2e_s_by_class=_by_name((one.request.label, _e2e(one)) for one in finished),
        ttft_s_by_class=_by_name((one.request.label, _ttft(one)) for one in finished),
        ttft_s_by_tenant=_by_name((one.request.tenant, _ttft(one)) for one in finished),
        gap_s_by_class={name: summarise_gaps([gaps]) for name, gaps in sorted(run.gaps.items())},
        overtaken=summarise(map(float, overtaken.values())),
        overtaken_by_class=_by_name((outcomes[number].request.label, float(n)) for number, n in overtaken.items()),
        retractions=int(run.counters["retractions"]),
        preemptions=int(run.counters["preemptions"]),
        recomputed_tokens=sum(outcome.recomputed_tokens for outcome in outcomes),
        wasted_rows=int(run.counters["wasted_rows"]),
        fairness=jain(_slow_down_by_tenant(finished, engine, chunk_tokens)),
        mean_running=_share(run.timeline.running_seconds, run.timeline.busy_s),
        max_queued=run.timeline.max_queued,
        max_kv_used_tokens=run.timeline.max_kv_used_tokens,
        steps=run.steps,
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _ttft(outcome: Outcome) -> float:
    return outcome.first_token_s - outcome.arrival_s


def _e2e(outcome: Outcome) -> float:
    return outcome.end_s - outcome.arrival_s


def _tpot(outcome: Outcome) -> float:
    return (outcome.end_s - outcome.first_token_s) / (outcome.output_tokens - 1)


def _by_name(values: Iterable[tuple[str, float]]) -> dict[str, Summary]:
    named: dict[str, list[float]] = {}
    for name, value in values:
        named.setdefault(name, []).append(value)
    return {name: summarise(found) for name, found in sorted(named.items())}


def _slow_down_by_tenant(finished: Sequence[Outcome], engine: SimulatedEngine, chunk_tokens: int) -> list[float]:
    tenants: dict[str, list[float]] = {}
    for outcome in finished:
        alone_s = engine.cost.alone_s(outcome.request.input_tokens, outcome.output_tokens, chunk_tokens)
        tenants.setdefault(outcome.request.tenant, []).append(_e2e(outcome) / alone_s)
    return [sum(found) / len(found) for found in tenants.values()]


def summarise(values: Iterable[float]) -> Summary:
    """Return mean, percentiles and maximum of values, none of them negative."""
    ordered = sorted(values)
    if not ordered:
        return Summary()
    assert ordered[0] >= 0, "a time before another that comes first"
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Summary(sum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of sorted values lie, between the two nearest linearly."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summarise_gaps(classes: Iterable[Gaps]) -> Summary:
    """Return the summary of gaps, each counted as often as rows had it; percentiles are of a value that occurred."""
    pairs = sorted(pair for gaps in classes for pair in zip(gaps.seconds, gaps.counts, strict=True))
    total = sum(count for _, count in pairs)
    if not total:
        return Summary()
    seen = list(itertools.accumulate(count for _, count in pairs))
    p50, p90, p99 = (pairs[bisect_left(seen, -(-total * percent // 100))][0] for percent in (50, 90, 99))
    return Summary(sum(seconds * count for seconds, count in pairs) / total, p50, p90, p99, pairs[-1][0])


def jain(values: Sequence[float]) -> float:
    """Return Jain's fairness index: (sum x)^2 / (n sum x^2); 1.0 of nothing."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def count_overtaken(run: Run) -> list[int]:
    """Return, for each request in the order of admission, the admitting steps in which a later arrival passed it.

    Counted are steps between its arrival and its own admission that admitted a request that came after it. Requests
    are visited from the last arrival to the first, so that the steps that passed one are in the sums already.
    """
    latest = run.admitting_passes
    passed = _Sums(len(latest))
    pending = sorted(range(len(latest)), key=latest.__getitem__)
    counts: dict[int, int] = {}
    for number in sorted(run.admission_order, reverse=True):
        while pending and latest[pending[-1]] > number:
            passed.add(pending.pop())
        outcome = run.outcomes[number]
        counts[number] = passed.before(outcome.passes_at_admission) - passed.before(outcome.passes_at_arrival)
    return [counts[number] for number in run.admission_order]


class _Sums:
    """How many of a growing set of positions lie below a bound, in logarithmic time (Fenwick, 1994)."""

    def __init__(self, size: int) -> None:
        self._sums = [0] * (size + 1)

    def add(self, position: int) -> None:
        """Add a position."""
        at = position + 1
        while at < len(self._sums):
            self._sums[at] += 1
            at += at & -at

    def before(self, bound: int) -> int:
        """Return how many positions are below `bound`."""
        at, total = bound, 0
        while at:
            total += self._sums[at]
            at -= at & -at
        return total
