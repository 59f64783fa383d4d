"""Which configuration suits a trace: every sensible one runs windows of it, and a stated criterion picks one.

Policies differ by what a queue becomes, which takes longer than a window where the engine is overloaded. So the best of
the windows also run the trace from its beginning, to its end or for LONG_REQUESTS, and are judged by that; the windows
say how sure a difference is.

The criterion. First, every request is served. Second, with a target between tokens, at most LATE of the gaps are above
it, if any configuration manages that. Third, the throughput is within TIE of the best. Of those that are left the
shortest p99 time to first token wins, of the most urgent class where the trace has priorities; what is within CLOSE of
it counts as equal, and of equals the one with the fewest flags wins. If no configuration differs from the plain one by
more than the noise between windows, the plain one is the answer.
"""

from collections.abc import Sequence

import msgspec

from quartet.simulator.combinations import combinations
from quartet.simulator.driver import SimulatedEngine
from quartet.simulator.request import Workload
from quartet.simulator.trials import Bench, Trial, difference
from quartet.simulator.windows import windows
from quartet.wire.config import SchedulerConfig

TIE = 0.02
CLOSE = 0.02
LATE = 0.01
DIFFERENT = 0.05
"""On the long run more than this is a difference of this trace, however much its windows vary."""
WINDOWS = 6
WINDOW_REQUESTS = 400
LONG_REQUESTS = 3000
FEW_REQUESTS = 200
SPANS = 3
"""A window lasts so many times as long as a request, or its end is most of it."""
COMPARED = ("output_tokens_per_s", "ttft_p99_s")


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """The recommended flags, why, what they cost and what to doubt, in sentences; and every run.

    `class_name` is the class of the columns of the first token; `is_indifferent` says that it makes no difference.
    """

    flags: str
    reason: str
    cost: str
    notes: list[str]
    class_name: str
    target_ms: float
    is_indifferent: bool
    ties: list[str]
    trials: list[Trial]

    def chosen(self) -> Trial:
        """Return the trial of the recommended flags."""
        return next(trial for trial in self.trials if trial.flags == self.flags)


def advise(
    requests: Sequence[Workload],
    engine: SimulatedEngine,
    config: SchedulerConfig,
    chunk_tokens: int,
    processes: int = 2,
) -> Advice:
    """Run the sensible configurations on windows of a trace and recommend one."""
    urgent = _most_urgent(requests, config) if len({request.priority for request in requests}) > 1 else None
    draws = windows(requests, WINDOWS, WINDOW_REQUESTS, config.random_seed)
    long = list(requests[:LONG_REQUESTS])
    bench = Bench(draws, long, engine, chunk_tokens, urgent, config.tbt_target_ms / 1000)
    tried = combinations(requests, config, engine.mixed_tokens)
    trials = bench.race(tried, ordered, processes)
    notes = doubts(requests, draws, trials[0])
    if len(requests) > len(long):
        notes.append(f"The long run is of the first {len(long)} of {len(requests)} requests.")
    if len(trials) < len(tried):
        notes.append(f"Not tried: {len(tried) - len(trials)} configurations whose reservation changes nothing here.")
    return make_advice(trials, notes, urgent, config.tbt_target_ms)


def _most_urgent(requests: Sequence[Workload], config: SchedulerConfig) -> str:
    named = [request for request in requests if request.priority is not None]
    sign = 1 if config.schedule_low_priority_values_first else -1
    return min(named, key=lambda request: sign * (request.priority or 0)).label


def ordered(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials from the best to the worst by the module's criterion; those of equal worth stay in order."""
    served = max(trial.value("finished") for trial in trials)
    on_time = min(trial.value("late_gaps") for trial in trials) <= LATE
    fastest = max(trial.value("output_tokens_per_s") for trial in trials)

    def worth(trial: Trial) -> tuple[bool, bool, bool, float]:
        is_late = on_time and trial.value("late_gaps") > LATE
        is_slow = trial.value("output_tokens_per_s") < (1 - TIE) * fastest
        return trial.value("finished") < served, is_late, is_slow, trial.value("ttft_p99_s")

    return sorted(trials, key=worth)


def make_advice(trials: list[Trial], notes: list[str], urgent: str | None, target_ms: float) -> Advice:
    """Pick one of the trials that ran every window. The first trial is the plain configuration."""
    plain = trials[0]
    finalists = [trial for trial in trials if len(trial.windows) == len(plain.windows)]
    is_indifferent = all(_is_tie(trial, plain, target_ms) for trial in trials)
    best = plain if is_indifferent else ordered(finalists)[0]
    equal = [trial for trial in finalists if _is_as_good(trial, best)]
    chosen = best if is_indifferent else min(equal, key=lambda trial: len(trial.flags.split()))
    ties = [trial.flags for trial in finalists if trial is not chosen and _is_tie(trial, chosen, target_ms)]
    return Advice(
        flags=chosen.flags,
        reason=_reason(chosen, plain, is_indifferent, len(trials), urgent),
        cost=_cost(chosen, finalists),
        notes=notes,
        class_name=urgent or "all requests",
        target_ms=target_ms,
        is_indifferent=is_indifferent,
        ties=ties,
        trials=trials,
    )


def _is_tie(one: Trial, other: Trial, target_ms: float) -> bool:
    names = (*COMPARED, "gap_p99_s") if target_ms else COMPARED
    changes = [difference(one, other, name) for name in names]
    has_long = one.long is not None and other.long is not None
    is_close = not has_long or all(abs(change.mean) <= DIFFERENT for change in changes)
    return is_close and difference(one, other, "finished").mean == 0.0 and all(one.is_within(TIE) for one in changes)


def _is_as_good(trial: Trial, best: Trial) -> bool:
    """Say whether a trial is as good as the best in every respect, by its means alone."""
    return (
        trial.value("finished") == best.value("finished")
        and trial.value("late_gaps") <= max(LATE, best.value("late_gaps"))
        and trial.value("output_tokens_per_s") >= (1 - TIE / 2) * best.value("output_tokens_per_s")
        and trial.value("ttft_p99_s") <= (1 + CLOSE) * best.value("ttft_p99_s")
    )


def doubts(requests: Sequence[Workload], draws: Sequence[Sequence[Workload]], plain: Trial) -> list[str]:
    """Return why the trace may be too short to tell."""
    found = []
    if len(requests) < FEW_REQUESTS:
        found.append(
            f"The trace is too short to tell: it has {len(requests)} requests, and a p99 needs at least {FEW_REQUESTS}."
        )
    span_s, lasts_s = max(draw[-1].arrival_s for draw in draws), plain.mean("e2e_mean_s")
    if 0 < span_s < SPANS * lasts_s:
        found.append(
            f"The trace is too short to tell what happens later: requests last {lasts_s:.1f} s and arrive within "
            f"{span_s:.1f} s. Either the engine is overloaded, or a longer trace or a lower --speed is needed."
        )
    return found


def _reason(chosen: Trial, plain: Trial, is_indifferent: bool, count: int, urgent: str | None) -> str:
    of = f" of {urgent}" if urgent else ""
    figures = (
        f"{_with_interval(chosen, 'output_tokens_per_s', '.0f')} output tokens/s, "
        f"p99 time to first token{of} {_with_interval(chosen, 'ttft_p99_s', '.3f')} s"
    )
    if is_indifferent:
        most = max(one.most_waiting for one in plain.windows)
        load = "no request waits in the queue" if not most else f"at most {most} requests wait"
        return f"It makes no difference on this traffic ({load}): keep {chosen.flags}. {figures}."
    if chosen is plain:
        return f"{chosen.flags}: {figures}. None of the {count} configurations is better by the criterion."
    parts = []
    for name, title in zip(COMPARED, ("throughput", f"p99 time to first token{of}"), strict=True):
        found = difference(chosen, plain, name)
        is_tie = ", a tie" if found.is_within(TIE) else ""
        parts.append(f"{title} {found.mean:+.1%} +- {found.half_width:.1%}{is_tie}")
    if plain.value("late_gaps") or chosen.value("late_gaps"):
        parts.append(f"gaps above the target {chosen.value('late_gaps'):.2%} instead of {plain.value('late_gaps'):.2%}")
    return f"{chosen.flags}: {figures}. Against {plain.flags}: {'; '.join(parts)}."


def _cost(chosen: Trial, finalists: Sequence[Trial]) -> str:
    fastest = max(finalists, key=lambda trial: trial.value("output_tokens_per_s"))
    lost = 1 - chosen.value("output_tokens_per_s") / fastest.value("output_tokens_per_s")
    shortest = min(finalists, key=lambda trial: trial.value("e2e_p99_s"))
    return (
        f"What it costs: {lost:.1%} of the highest throughput ({fastest.flags}); p99 end to end of all requests "
        f"{chosen.value('e2e_p99_s'):.2f} s, the shortest is {shortest.value('e2e_p99_s'):.2f} s ({shortest.flags}); "
        f"the longest wait for a first token is {chosen.value('longest_wait_s'):.2f} s."
    )


def _with_interval(trial: Trial, name: str, form: str) -> str:
    windows = f"{trial.mean(name):{form}} +- {trial.half_width(name):{form}}"
    return windows if trial.long is None else f"{trial.value(name):{form}} (windows: {windows})"
