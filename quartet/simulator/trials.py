"""Configurations on windows of a trace: what is measured, in two processes, and how sure a difference is."""

import math
import os
import statistics
from collections.abc import Callable, Sequence

import msgspec

from quartet.simulator.combinations import Combination
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.record import Run
from quartet.simulator.report import Summary, make_report
from quartet.simulator.request import Workload

FINALISTS = 6
SAME = 0.01
"""A reservation that changes less than this on the first window, under the plain policy, is not tried with others."""
Task = tuple[Combination, int]
"""A configuration and the number of a window."""
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Of 95 %, by degrees of freedom."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration on one window; times in seconds.

    `ttft_p99_s` is of the class that the advice looks at, `e2e_p99_s` and `longest_wait_s` (to the first token) of
    all. `late_gaps` is the share of gaps between tokens above the target, 0 without one.
    """

    requests: int
    finished: int
    output_tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p99_s: float
    late_gaps: float
    e2e_mean_s: float
    e2e_p99_s: float
    longest_wait_s: float
    fairness: float
    retractions: int
    most_waiting: int


class Trial(msgspec.Struct):
    """One configuration with what was measured, in the order of the windows: as many as it stayed in the race for.

    `long` is what a finalist did on the long run.
    """

    flags: str
    windows: list[Measured]
    long: Measured | None = None

    def value(self, name: str) -> float:
        """Return what configurations are judged by: the value on the long run, until that the mean over windows."""
        return self.mean(name) if self.long is None else float(getattr(self.long, name))

    def mean(self, name: str) -> float:
        """Return the mean of a measured value over the windows."""
        return statistics.fmean(getattr(one, name) for one in self.windows)

    def half_width(self, name: str) -> float:
        """Return half the width of the 95 % interval of the mean; infinite for one window."""
        return half_width([getattr(one, name) for one in self.windows])


class Difference(msgspec.Struct, frozen=True):
    """A value of one trial over another's less 1, on the windows that both ran: the mean, and its 95 % interval."""

    mean: float
    half_width: float

    def is_within(self, noise: float) -> bool:
        """Say whether it is a tie: below `noise`, or an interval with 0 in it. One window has no interval."""
        return abs(self.mean) <= max(noise, self.half_width if math.isfinite(self.half_width) else 0.0)


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean, by Student's t."""
    if len(values) < 2:
        return math.inf
    t = STUDENT_T.get(len(values) - 1, 2.0)
    return t * statistics.stdev(values) / math.sqrt(len(values))


def difference(one: Trial, other: Trial, name: str) -> Difference:
    """Compare two trials: on the long run if both ran it, with the interval of the differences window by window, in
    which what differs between windows does not count."""
    pairs = zip(one.windows, other.windows, strict=False)
    changes = [_change(getattr(mine, name), getattr(theirs, name)) for mine, theirs in pairs]
    has_long = one.long is not None and other.long is not None
    change = _change(one.value(name), other.value(name)) if has_long else statistics.fmean(changes)
    return Difference(change, half_width(changes))


def _change(value: float, other: float) -> float:
    return value / other - 1.0 if other else float(value > 0)


class Bench:
    """Runs combinations on windows.

    Args:
        windows: of the trace.
        long: the long run.
        engine: the engine's size and cost.
        chunk_tokens: the prefill chunk.
        urgent: the class whose time to first token counts; None: all.
        target_s: of gaps between tokens; 0: none.
    """

    def __init__(
        self,
        windows: list[list[Workload]],
        long: list[Workload],
        engine: SimulatedEngine,
        chunk_tokens: int,
        urgent: str | None,
        target_s: float,
    ) -> None:
        self._stretches = [*windows, long]
        self._engine = engine
        self._chunk_tokens = chunk_tokens
        self._urgent = urgent
        self._target_s = target_s

    def measure(self, combination: Combination, number: int) -> Measured:
        """Run one combination on a window, or, with the number after the last one's, on the long run."""
        run = simulate(self._stretches[number], self._engine, combination.config)
        report = make_report(run, self._engine, self._chunk_tokens)
        all_first = report.ttft_s
        first = all_first if self._urgent is None else report.ttft_s_by_class.get(self._urgent, Summary())
        return Measured(
            requests=report.requests,
            finished=report.finished,
            output_tokens_per_s=report.output_tokens_per_s,
            ttft_p50_s=first.p50 or 0.0,
            ttft_p99_s=first.p99 or 0.0,
            gap_p99_s=report.gap_s.p99 or 0.0,
            late_gaps=_late_gaps(run, self._target_s),
            e2e_mean_s=report.e2e_s.mean or 0.0,
            e2e_p99_s=report.e2e_s.p99 or 0.0,
            longest_wait_s=all_first.max or 0.0,
            fairness=report.fairness,
            retractions=report.retractions,
            most_waiting=report.max_queued,
        )

    def race(
        self, combinations: Sequence[Combination], order: Callable[[Sequence[Trial]], list[Trial]], processes: int
    ) -> list[Trial]:
        """Run all on the first window, the better half on the second, the best FINALISTS on all and on the long run.

        The first combination, the plain one, stays in to the end. A reservation that changes nothing with it is tried
        with no other. Returns the trials in the order given.
        """
        trials = {one.flags: Trial(one.flags, []) for one in combinations}

        def run(chosen: Sequence[Combination], first: int, last: int) -> None:
            tasks = [(one, number) for one in chosen for number in range(first, last)]
            for (one, _), found in zip(tasks, self.measured(tasks, processes), strict=True):
                trials[one.flags].windows.append(found)

        count = len(self._stretches) - 1
        plain, *others = combinations
        probes = [one for one in others if _is_but_for_reservation(one, plain)]
        run([plain, *probes], 0, 1)
        idle = {one.config.reservation for one in probes if _is_same(trials[one.flags], trials[plain.flags])}
        left = [one for one in combinations if one.config.reservation not in idle]
        run([one for one in left if not trials[one.flags].windows], 0, 1)
        for first, last, most in ((1, 2, max(FINALISTS, len(left) // 2)), (2, count, FINALISTS)):
            kept = {trial.flags for trial in order([trials[one.flags] for one in left])[:most]} | {plain.flags}
            left = [one for one in left if one.flags in kept]
            run(left, min(first, count), min(last, count))
        tasks = [(one, count) for one in left]
        for one, found in zip(left, self.measured(tasks, processes), strict=True):
            trials[one.flags].long = found
        return [trial for trial in trials.values() if trial.windows]

    def measured(self, tasks: Sequence[Task], processes: int) -> list[Measured]:
        """Return what each task measures; they are dealt out to this process and forks of it."""
        pipes = [self._forked(tasks[share::processes]) for share in range(1, processes)]
        shares = [[self.measure(*task) for task in tasks[::processes]]]
        for share, (child, pipe) in enumerate(pipes, 1):
            with open(pipe, "rb") as file:
                answer = file.read()
            os.waitpid(child, 0)
            # A share without an answer failed in its process; here it fails with its own error.
            again = [] if answer else [self.measure(*task) for task in tasks[share::processes]]
            shares.append(msgspec.json.decode(answer, type=list[Measured]) if answer else again)
        return [shares[number % processes][number // processes] for number in range(len(tasks))]

    def _forked(self, tasks: Sequence[Task]) -> tuple[int, int]:
        """Run tasks in a fork of this process; returns its id and the pipe that brings their results as JSON."""
        pipe, end = os.pipe()
        child = os.fork()
        if child:
            os.close(end)
            return child, pipe
        try:
            with open(end, "wb") as file:
                file.write(msgspec.json.encode([self.measure(*task) for task in tasks]))
        finally:
            os._exit(0)


def _is_but_for_reservation(one: Combination, other: Combination) -> bool:
    return msgspec.structs.replace(one.config, reservation=other.config.reservation) == other.config


def _is_same(one: Trial, other: Trial) -> bool:
    """Say whether every measured value is about the same on the windows of both."""
    values = [(getattr(one.windows[0], name), getattr(other.windows[0], name)) for name in Measured.__struct_fields__]
    return all(abs(mine - theirs) <= SAME * max(mine, theirs) for mine, theirs in values)


def _late_gaps(run: Run, target_s: float) -> float:
    if not target_s:
        return 0.0
    counted = [
        (seconds, count) for gaps in run.gaps.values() for seconds, count in zip(gaps.seconds, gaps.counts, strict=True)
    ]
    total = sum(count for _, count in counted)
    return sum(count for seconds, count in counted if seconds > target_s) / total if total else 0.0
