"""Which policy suits a trace: every policy runs it, and a stated criterion picks one.

The criterion. Those whose p99 time to first token is within SLACK of the best are eligible; of these
the one with the most output a second wins, where less than TIE apart counts as equal; of equals the shortest p99 time
to first token wins, then the shortest mean, then the one that stands first in the list of policies, plain fcfs. Where
a trace has priorities, the same holds for the most urgent class, among runs with priority scheduling.
"""

from collections.abc import Sequence

import msgspec

from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.report import Report, Summary, make_report
from quartet.simulator.request import Workload
from quartet.wire.config import POLICIES, SchedulerConfig

SLACK = 1.25
TIE = 0.02
NEVER_S = float("inf")


class Candidate(msgspec.Struct, frozen=True):
    """One way to schedule the trace, and how it went. `flags` are what to give to `quartet serve`."""

    flags: str
    report: Report
    urgent_ttft_s: Summary


class Advice(msgspec.Struct, frozen=True):
    """The recommended flags, the reason in a sentence, and every run."""

    flags: str
    reason: str
    candidates: list[Candidate]


def advise(requests: Sequence[Workload], engine: SimulatedEngine, config: SchedulerConfig, chunk_tokens: int) -> Advice:
    """Run a trace under every policy, with and without priority scheduling where it has priorities; recommend one."""
    has_priorities = len({request.priority for request in requests}) > 1
    urgent = _most_urgent(requests, config) if has_priorities else None
    candidates = []
    for policy in POLICIES:
        if config.disable_radix_cache and policy == "shortest-prefill-first":
            continue
        for is_priority in (False, True) if has_priorities else (False,):
            changed = msgspec.structs.replace(config, schedule_policy=policy, enable_priority_scheduling=is_priority)
            report = make_report(simulate(requests, engine, changed), engine, chunk_tokens)
            flags = f"--schedule-policy {policy}" + (" --enable-priority-scheduling" if is_priority else "")
            candidates.append(Candidate(flags, report, _ttft_of(report, urgent)))
    chosen, reason = choose(candidates)
    return Advice(chosen.flags, reason, candidates)


def _most_urgent(requests: Sequence[Workload], config: SchedulerConfig) -> str:
    named = [request for request in requests if request.priority is not None]
    sign = 1 if config.schedule_low_priority_values_first else -1
    return min(named, key=lambda request: sign * (request.priority or 0)).label


def _ttft_of(report: Report, label: str | None) -> Summary:
    return report.ttft_s if label is None else report.ttft_s_by_class.get(label, Summary())


def choose(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Return the candidate that the module's criterion picks, and why in a sentence."""
    served = max(candidate.report.finished for candidate in candidates)
    complete = [candidate for candidate in candidates if candidate.report.finished == served]
    best_s = min(_p99(candidate) for candidate in complete)
    patient = [candidate for candidate in complete if _p99(candidate) <= SLACK * best_s]
    fastest = max(candidate.report.output_tokens_per_s for candidate in patient)
    equal = [candidate for candidate in patient if candidate.report.output_tokens_per_s >= (1 - TIE) * fastest]
    chosen = min(equal, key=lambda candidate: (_p99(candidate), candidate.urgent_ttft_s.mean or 0.0))
    left = len(candidates) - len(patient)
    return chosen, (
        f"{chosen.flags}: {chosen.report.output_tokens_per_s:.0f} output tokens/s, p99 time to first token "
        f"{_p99(chosen):.3f} s. {left} of {len(candidates)} serve fewer requests or take more than {SLACK} times the "
        f"shortest p99 ({best_s:.3f} s); of the others it is the fastest, or as fast within {TIE:.0%} and sooner."
    )


def _p99(candidate: Candidate) -> float:
    return NEVER_S if candidate.urgent_ttft_s.p99 is None else candidate.urgent_ttft_s.p99
