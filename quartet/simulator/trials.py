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


class Trial(msgspec.Struct, frozen=True):
    """One configuration with what was measured, in the order of the windows: as many as it stayed in the race for."""

    flags: str
    windows: list[Measured]

    def mean(self, name: str) -> float:
        """Return the mean of a measured value."""
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
    """Compare two trials window by window, so that what differs between windows does not count."""
    changes = []
    for mine, theirs in zip(one.windows, other.windows, strict=False):
        mine_value, their_value = getattr(mine, name), getattr(theirs, name)
        changes.append(mine_value / their_value - 1.0 if their_value else float(mine_value > 0))
    return Difference(statistics.fmean(changes), half_width(changes))


class Bench:
    """Runs combinations on windows.

    Args:
        windows: of the trace.
        engine: the engine's size and cost.
        chunk_tokens: the prefill chunk.
        urgent: the class whose time to first token counts; None: all.
        target_s: of gaps between tokens; 0: none.
    """

    def __init__(
        self,
        windows: list[list[Workload]],
        engine: SimulatedEngine,
        chunk_tokens: int,
        urgent: str | None,
        target_s: float,
    ) -> None:
        self.windows = windows
        self._engine = engine
        self._chunk_tokens = chunk_tokens
        self._urgent = urgent
        self._target_s = target_s

    def measure(self, combination: Combination, number: int) -> Measured:
        """Run one combination on one window."""
        run = simulate(self.windows[number], self._engine, combination.config)
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
        """Run all on the first window, the better half on the second, the best FINALISTS on all windows.

        The first combination stays in to the end. Returns the trials in the order given.
        """
        trials = {one.flags: Trial(one.flags, []) for one in combinations}
        left = list(combinations)
        for first, last in ((0, 1), (1, 2), (2, len(self.windows))):
            tasks = [(one, number) for one in left for number in range(first, min(last, len(self.windows)))]
            for (one, _), found in zip(tasks, self._measured(tasks, processes), strict=True):
                trials[one.flags].windows.append(found)
            ranked = [trial.flags for trial in order([trials[one.flags] for one in left])]
            kept = {*ranked[: max(FINALISTS, len(left) // 2) if first == 0 else FINALISTS], combinations[0].flags}
            left = [one for one in left if one.flags in kept]
        return list(trials.values())

    def _measured(self, tasks: Sequence[Task], processes: int) -> list[Measured]:
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


def _late_gaps(run: Run, target_s: float) -> float:
    if not target_s:
        return 0.0
    counted = [
        (seconds, count) for gaps in run.gaps.values() for seconds, count in zip(gaps.seconds, gaps.counts, strict=True)
    ]
    total = sum(count for _, count in counted)
    return sum(count for seconds, count in counted if seconds > target_s) / total if total else 0.0
