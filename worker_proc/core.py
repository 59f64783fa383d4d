"""The worker without its thread and its link: the handshake with the scheduler, and steps in flight on a runner.

Results leave in the order of their steps, failures included. Unlike other cores it waits for the device: `tick` blocks
until the oldest step in flight is done, and so does `handle` when two are in flight.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quartet.runtime.clock import Clock
from quartet.runtime.core import Metrics, Sent
from quartet.wire.codec import Source
from quartet.wire.frames import (
    ID_BYTES,
    CompileGrammar,
    GrammarCompiled,
    ProcessTable,
    SchedulerHello,
    Step,
    StepFailed,
    WorkerInbound,
)
from quartet.wire.ids import Epoch, Role, process_name
from worker_proc.contract import DeviceLostError, InFlightStep, OutOfMemoryError, Runner
from worker_proc.session import Session

logger = logging.getLogger(__name__)

SCHEDULER = process_name(Role.SCHEDULER, 0)
MAX_IN_FLIGHT = 2
WARM_UP_DEADLINE_S = 300.0


@dataclass
class WorkerCounters:
    """What the worker has done so far; written by the thread that runs it, read by any."""

    steps: int = 0
    failed_steps: int = 0
    stale_frames: int = 0
    sampled_tokens: int = 0
    prefill_tokens: int = 0
    busy_s: float = 0.0
    compiles_after_ready: int = 0


def _ignore_phase(phase: str, deadline_s: float) -> None:
    """Take a phase where no supervisor watches."""


def _ignore_progress() -> None:
    """Take progress where no supervisor watches."""


class WorkerCore:
    """Steps of one scheduler after another on one runner. For one thread.

    Args:
        epoch: this incarnation of the worker.
        runner: loaded, its KV pool not yet allocated.
        clock: measures how long steps take.
        step_timeout_s: declared with the phase of a step.
        set_phase: called with each new phase and its deadline in seconds.
        progress: called for each step that is done.
        max_in_flight: steps in flight at which `handle` waits for the oldest.
    """

    inbound: Any = WorkerInbound

    def __init__(
        self,
        epoch: Epoch,
        runner: Runner,
        clock: Clock,
        step_timeout_s: float = 0.0,
        set_phase: Callable[[str, float], None] = _ignore_phase,
        progress: Callable[[], None] = _ignore_progress,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._runner = runner
        self._now = clock.now
        self._step_timeout_s = step_timeout_s
        self._declare = set_phase
        self._progress = progress
        self._max_in_flight = max_in_flight
        self._session = Session(epoch, lambda: runner.capacity)
        self._table = ProcessTable([], False)
        self._in_flight: deque[tuple[InFlightStep, float]] = deque()
        self._finished_s = self._last_step_s = 0.0
        self._phase = ""
        self.is_compiling = False
        """Whether a grammar is being compiled ahead."""
        self.is_ready = False
        """Whether a scheduler's page count has been allocated once."""
        self.counters = WorkerCounters()

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Launch a step, or serve a new scheduler; a frame of another incarnation is counted and dropped."""
        match frame:
            case Step() if self._session.accepts_step(source.epoch, frame):
                return self._launch(frame, now)
            case SchedulerHello() if self._session.accepts_hello(source.epoch, frame):
                return self._accept_scheduler(source.epoch, frame)
            case SchedulerHello() if self._session.is_query(source.epoch, frame):
                return [(SCHEDULER, self._session.report(frame.query, len(self._in_flight)))]
            case CompileGrammar():
                self._runner.grammars.compile_ahead(frame.key, frame.source)
                self.is_compiling = True
                return self.take_compiled()
            case ProcessTable():
                self._table = frame
                return self.greet(now)
            case Step() | SchedulerHello():
                self.counters.stale_frames += 1
        return []

    def tick(self, now: float) -> list[Sent]:
        """Send a hello that is due, and the result of the oldest step in flight, for which it waits."""
        sent = self.greet(now) + self.take_compiled()
        return sent + self.finish_oldest() if self._in_flight else sent

    def next_deadline(self) -> float | None:
        """Return when `tick` is wanted: at once while a step is in flight, else when a hello is due."""
        return 0.0 if self._in_flight else self._session.next_greeting_s()

    def is_idle(self) -> bool:
        """Say whether no step is in flight."""
        return not self._in_flight

    def metrics(self) -> Metrics:
        """Return the counters."""
        counters = self.counters
        return Metrics(
            {},
            {
                "worker_steps": counters.steps,
                "worker_failed_steps": counters.failed_steps,
                'frames_dropped{reason="stale"}': counters.stale_frames,
                "worker_sampled_tokens": counters.sampled_tokens,
                "worker_prefill_tokens": counters.prefill_tokens,
                "worker_busy_seconds": counters.busy_s,
                "worker_compiles_after_ready": counters.compiles_after_ready,
            },
        )

    # For the executor, which waits for the device and for its link in turn

    def greet(self, now: float, table: ProcessTable | None = None) -> list[Sent]:
        """Return the hello that is due, if one is, by the process table (the last one if none is given)."""
        hello = self._session.greet(self._table if table is None else table, now)
        return [] if hello is None else [(SCHEDULER, hello)]

    def take_compiled(self) -> list[Sent]:
        """Return the answers for grammars that have been compiled ahead."""
        if not self.is_compiling:
            return []
        grammars, epoch = self._runner.grammars, self._session.scheduler_epoch
        answers = [GrammarCompiled(epoch, key, error) for key, error in grammars.take_compiled()]
        self.is_compiling = grammars.is_busy
        return [(SCHEDULER, answer) for answer in answers]

    def is_oldest_done(self) -> bool:
        """Say whether a step is in flight that `finish_oldest` would not wait for."""
        return bool(self._in_flight) and self._in_flight[0][0].is_done()

    def end_is_due_within(self, seconds: float, now: float) -> bool:
        """Say whether the oldest step in flight ends within that time, if it takes as long as the last one."""
        running_s = now - max(self._in_flight[0][1], self._finished_s)
        return running_s + seconds >= self._last_step_s

    def finish_oldest(self) -> list[Sent]:
        """Wait for the oldest step in flight; return its result."""
        in_flight, started_s = self._in_flight.popleft()
        result = in_flight.wait()
        self._progress()
        self.counters.steps += 1
        self.counters.sampled_tokens += len(result.ids) // ID_BYTES
        now = self._now()
        self.counters.busy_s += now - started_s
        self._last_step_s = now - max(started_s, self._finished_s)
        self._finished_s = now
        return [(SCHEDULER, result)]

    def set_phase(self, phase: str, deadline_s: float) -> None:
        """Declare a phase if it is another than the current one."""
        if phase != self._phase:
            self._phase = phase
            self._declare(phase, deadline_s)

    # Frames

    def _accept_scheduler(self, scheduler_epoch: Epoch, hello: SchedulerHello) -> list[Sent]:
        while self._in_flight:
            self._in_flight.popleft()[0].wait()
        self.set_phase("warming up", WARM_UP_DEADLINE_S)
        self._runner.reset()
        self._runner.allocate(hello.page_count)
        self.is_ready = True
        return [(SCHEDULER, self._session.begin(scheduler_epoch, hello))]

    def _launch(self, step: Step, now: float) -> list[Sent]:
        self.set_phase("step", self._step_timeout_s)
        try:
            in_flight = self._runner.launch(step, self._session.scheduler_epoch)
        except DeviceLostError:
            raise
        except OutOfMemoryError as error:
            return self._fail(step, "oom", error)
        except Exception as error:
            logger.exception("step %d failed", step.step)
            return self._fail(step, "error", error)
        self._in_flight.append((in_flight, now))
        self.counters.compiles_after_ready = self._runner.late_compiles
        self.counters.prefill_tokens += sum(chunk.length for chunk in step.chunks)
        return self.finish_oldest() if len(self._in_flight) >= self._max_in_flight else []

    def _fail(self, step: Step, kind: str, error: Exception) -> list[Sent]:
        sent: list[Sent] = []
        while self._in_flight:
            sent += self.finish_oldest()
        self.counters.failed_steps += 1
        self._progress()
        message = f"{type(error).__name__}: {error}"
        return [*sent, (SCHEDULER, StepFailed(self._session.scheduler_epoch, step.step, kind, message))]
