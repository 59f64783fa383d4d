"""The executor thread: owns the link, the runner and with it torch and the device.

It keeps up to two steps in flight: while one runs, it waits for whichever comes first, the frame of the next, which is
launched behind it, or its end. With two in flight it sleeps until the older one is done.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quartet.runtime.actor import BlockingLink, Context
from quartet.wire.codec import Source
from quartet.wire.frames import SchedulerHello, Step, StepFailed
from quartet.wire.ids import Epoch, Role, process_name
from worker_proc.contract import DeviceLostError, OutOfMemoryError, Pending, Runner
from worker_proc.session import Session

logger = logging.getLogger(__name__)

SCHEDULER = process_name(Role.SCHEDULER, 0)
MAX_IN_FLIGHT = 2
POLL_S = 0.05
# While one step runs, both its end and the next step's frame are awaited. As long as its end is not due, the link can
# sleep until the frame comes, in whole milliseconds, of which a little more than one leaves one; after that neither may
# wait for the other.
FRAME_POLL_S = 0.0012
NEXT_STEP_POLL_S = 0.0001
LOAD_DEADLINE_S = 300.0


@dataclass
class WorkerCounters:
    """What the executor has done so far; written by its thread, read by the main loop."""

    steps: int = 0
    failed_steps: int = 0
    stale_frames: int = 0
    sampled_tokens: int = 0
    prefill_tokens: int = 0
    busy_s: float = 0.0
    compiles_after_ready: int = 0


class Executor:
    """Serves steps until told to stop.

    Args:
        context: the runtime; of it only the thread-safe parts are used, and the link, which this thread binds.
        make_runner: loads the model; called in this thread, may take minutes.
        on_ready: called from this thread with the facts once the first scheduler has been answered.
    """

    def __init__(
        self,
        context: Context,
        make_runner: Callable[[], Runner],
        on_ready: Callable[[dict[str, str | int | float]], None],
    ) -> None:
        self._context = context
        self._make_runner = make_runner
        self._on_ready = on_ready
        self._in_flight: deque[tuple[Pending, float]] = deque()
        self._finished_at = self._last_step_s = 0.0
        self._is_stopping = False
        self.is_ready = False
        self._phase = ""
        self.counters = WorkerCounters()

    def stop(self) -> None:
        """Ask the thread to end after the frame at hand. Safe from any thread."""
        self._is_stopping = True

    def run(self) -> None:
        """Load the model, then serve. Raises what ends the process: a model that cannot be loaded, a lost device."""
        self.load()
        while not self._is_stopping:
            self.poll_once()

    def load(self) -> None:
        """Bind the link and load the model, in the thread that will use both."""
        self._link: BlockingLink = self._context.blocking_link()
        self._set_phase("loading weights", LOAD_DEADLINE_S)
        self._runner = self._make_runner()
        self._session = Session(self._context.epoch, lambda: self._runner.capacity)

    def poll_once(self) -> None:
        """Greet a new scheduler, take at most one frame, and send every result that is due."""
        hello = self._session.due_hello(self._context.process_table, self._context.clock.now())
        if hello is not None:
            self._link.send(SCHEDULER, hello)
        if not self._in_flight:
            self._set_phase("idle", 0.0)
        timeout_s = self._link_timeout_s()
        received = self._link.recv(timeout_s)
        if received is not None:
            self._handle(*received)
        elif timeout_s == NEXT_STEP_POLL_S and not self._in_flight[0][0].is_done():
            # The link rounds short waits down to none, and a core is worth more than these microseconds.
            time.sleep(NEXT_STEP_POLL_S)
        while self._in_flight and (len(self._in_flight) >= MAX_IN_FLIGHT or self._in_flight[0][0].is_done()):
            self._finish_oldest()

    def _link_timeout_s(self) -> float:
        """Return how long the link may be waited for."""
        if not self._in_flight:
            return POLL_S
        running_s = self._context.clock.now() - max(self._in_flight[0][1], self._finished_at)
        return FRAME_POLL_S if running_s + 2 * FRAME_POLL_S < self._last_step_s else NEXT_STEP_POLL_S

    def _handle(self, source: Source, frame: Any) -> None:
        match frame:
            case Step() if self._session.accepts_step(source.epoch, frame):
                self._launch(frame)
            case SchedulerHello() if self._session.accepts_hello(source.epoch, frame):
                self._accept_scheduler(source.epoch, frame.page_count)
            case _:
                self.counters.stale_frames += 1

    def _accept_scheduler(self, scheduler_epoch: Epoch, page_count: int) -> None:
        while self._in_flight:
            self._in_flight.popleft()[0].wait()
        self._set_phase("warming up", LOAD_DEADLINE_S)
        self._runner.reset()
        self._runner.allocate(page_count)
        self._link.send(SCHEDULER, self._session.begin(scheduler_epoch))
        if not self.is_ready:
            self.is_ready = True
            self._on_ready(self._runner.facts())

    def _launch(self, step: Step) -> None:
        self._set_phase("step", self._context.config.server.step_timeout)
        started = self._context.clock.now()
        try:
            pending = self._runner.launch(step, self._session.scheduler_epoch)
        except DeviceLostError:
            raise
        except OutOfMemoryError as error:
            self._fail(step, "oom", error)
        except Exception as error:
            logger.exception("step %d failed", step.step)
            self._fail(step, "error", error)
        else:
            self._in_flight.append((pending, started))
            self.counters.compiles_after_ready = self._runner.late_compiles
            self.counters.prefill_tokens += sum(chunk.length for chunk in step.chunks)

    def _fail(self, step: Step, kind: str, error: Exception) -> None:
        # Results leave in the order of their steps, failures included.
        while self._in_flight:
            self._finish_oldest()
        self.counters.failed_steps += 1
        message = f"{type(error).__name__}: {error}"
        self._link.send(SCHEDULER, StepFailed(self._session.scheduler_epoch, step.step, kind, message))
        self._context.progress()

    def _finish_oldest(self) -> None:
        pending, started = self._in_flight.popleft()
        result = pending.wait()
        self._link.send(SCHEDULER, result)
        self._context.progress()
        self.counters.steps += 1
        self.counters.sampled_tokens += len(result.ids) // 4
        now = self._context.clock.now()
        self.counters.busy_s += now - started
        self._last_step_s = now - max(started, self._finished_at)
        self._finished_at = now

    def _set_phase(self, phase: str, deadline_s: float) -> None:
        if phase != self._phase:
            self._phase = phase
            self._context.set_phase(phase, deadline_s)
