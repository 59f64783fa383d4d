"""The thread of a rank other than 0: makes the calls of its runner that rank 0 makes of its own, in the same order.

What the steps give is dropped: rank 0 samples and answers the scheduler.
"""

from collections import deque
from collections.abc import Callable

from quartet.runtime.context import BlockingLink, Context, Facts
from quartet.runtime.core import Metrics
from quartet.wire.codec import Source
from quartet.wire.frames import RankInbound, RunnerCall, RunnerMethod, Step
from quartet.wire.ids import Epoch, Role
from worker_proc.contract import InFlightStep, Runner, StepError
from worker_proc.core import MAX_IN_FLIGHT, WARM_UP_DEADLINE_S
from worker_proc.executor import IDLE_DEADLINE_S, IDLE_POLL_S, LOAD_DEADLINE_S


class LostStepError(Exception):
    """A frame of rank 0 has not arrived, so that this rank is not where rank 0 is."""


class Follower:
    """Follows rank 0 until `stop` is called; has the methods of Executor that its process uses.

    Args:
        context: the runtime; only its thread-safe parts are used, and the link, which this thread binds.
        make_runner: loads this rank's part of the model; called in this thread, may take minutes.
        on_ready: called from this thread, without facts, once rank 0 has had the KV pool allocated.
    """

    def __init__(self, context: Context, make_runner: Callable[[], Runner], on_ready: Callable[[Facts], None]) -> None:
        self._context = context
        self._make_runner = make_runner
        self._on_ready = on_ready
        self._leader = Source(Role.WORKER, 0, context.epoch)
        self._in_flight: deque[InFlightStep] = deque()
        self._last_step = -1
        self._phase = ""
        self._stale_frames = 0
        self._is_stopping = False
        self.is_ready = False

    def metrics(self) -> Metrics:
        """Return what is this rank's alone. May be called from any thread."""
        return Metrics({}, {'frames_dropped{reason="stale"}': float(self._stale_frames)})

    def stop(self) -> None:
        """Make the thread end after the current frame. May be called from any thread."""
        self._is_stopping = True

    def run(self) -> None:
        """Load the model, then follow. Raises the errors that end the process."""
        self.load()
        while not self._is_stopping:
            self.poll_once()

    def load(self) -> None:
        """Bind the link and load the model, in the thread that uses both."""
        self._link: BlockingLink = self._context.blocking_link(RankInbound)
        self._set_phase("loading weights", LOAD_DEADLINE_S)
        self._runner = self._make_runner()

    def poll_once(self) -> None:
        """Handle at most one frame. A frame of an earlier rank 0 is counted and dropped.

        Raises LostStepError for a step that is not the next one, and what a call of the runner raises."""
        received = self._link.recv(IDLE_POLL_S)
        while self._in_flight and self._in_flight[0].is_done():
            self._finish_oldest()
        if received is None:
            if not self._in_flight:
                self._set_phase("idle", IDLE_DEADLINE_S)
                self._context.progress()
            return
        source, frame = received
        if source != self._leader:
            self._stale_frames += 1
        elif isinstance(frame, Step):
            self._launch(frame)
        else:
            self._call(frame)

    def _call(self, call: RunnerCall) -> None:
        self._set_phase("warming up", WARM_UP_DEADLINE_S)
        match call.method:
            case RunnerMethod.RESET:
                while self._in_flight:
                    self._finish_oldest()
                self._last_step = -1
                self._runner.reset()
            case RunnerMethod.ALLOCATE:
                self._runner.allocate(call.page_count)
                if not self.is_ready:
                    self.is_ready = True
                    self._on_ready({})
            case RunnerMethod.PREPARE_NEXT:
                self._runner.prepare_next()

    def _launch(self, step: Step) -> None:
        self._set_phase("step", self._context.config.server.step_timeout)
        if not self.is_ready or (self._last_step >= 0 and step.step != self._last_step + 1):
            raise LostStepError(f"step {step.step} follows {self._last_step}")
        self._last_step = step.step
        while len(self._in_flight) >= MAX_IN_FLIGHT:
            self._finish_oldest()
        try:
            self._in_flight.append(self._runner.launch(step, Epoch(0)))
        except StepError:
            # Rank 0 refuses it for the same reason, and says so to the scheduler.
            self._context.progress()

    def _finish_oldest(self) -> None:
        """Wait for a step, so that this rank, too, learns of rows whose logits are not finite."""
        self._in_flight.popleft().wait()
        self._context.progress()
        self._context.finished_work()

    def _set_phase(self, phase: str, deadline_s: float) -> None:
        if phase != self._phase:
            self._phase = phase
            self._context.set_phase(phase, deadline_s)
