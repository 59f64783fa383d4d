"""The handshake with the worker: whether one is up, its epoch, the page count it must allocate, and what it has lost.

The first worker proposes the page count that it can hold; a later one allocates exactly that count or fails. Frames
of any other epoch are dropped. A step or a result can be lost while both processes live: a result out of order shows
it, and so does the answer to a query about a step that takes long. Then a new session begins: the worker drops its
slots, and the steps in flight are computed again. Sans-IO, like the core.
"""

from quartet.wire.codec import Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import Exempt, LastEnd, ProcessStatus, SchedulerHello, WorkerHello
from quartet.wire.ids import Epoch, Role
from scheduler_proc.core.events import StepsLost, WorkerLost, WorkerUp
from scheduler_proc.core.in_flight import IssuedStep

QUERY_S = 1.0
"""How long a step is in flight before the worker is asked about it; then again each time it has doubled."""


class WorkerSession:
    """Tracks the current worker incarnation.

    Args:
        epoch: this scheduler's epoch; a hello for another one is stale.
    """

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._worker_epoch = Epoch(0)
        self._is_up = False
        self._session = 0
        self._query = 0
        self._queried_s = 0.0
        self._queried_step = 0
        self.page_count = 0
        self.sessions_lost = 0

    # Hellos

    def on_hello(
        self, source: Source, hello: WorkerHello, last_step: int, oldest: IssuedStep | None
    ) -> SchedulerHello | WorkerUp | StepsLost | None:
        """Take a worker's hello; returns the answer, or the event for the core, or None if nothing follows.

        Args:
            last_step: the step issued last.
            oldest: the oldest step in flight.

        Raises FrameError for a stale hello. A worker that cannot hold the agreed page count fails by itself.
        """
        if source.epoch < self._worker_epoch:
            raise FrameError("stale", f"worker epoch {source.epoch}")
        if source.epoch > self._worker_epoch:
            self._worker_epoch, self._is_up = source.epoch, False
        if not hello.is_ready:
            if self.page_count == 0:
                self.page_count = hello.page_count
            return self._hello(last_step)
        is_other = hello.scheduler_epoch != self._epoch or hello.page_count != self.page_count
        if is_other or hello.session < self._session:
            raise FrameError("stale", "hello for another scheduler or session")
        if hello.session > self._session:
            # The worker serves a session that was never begun here: only a later one brings it back.
            self._session = hello.session
            return StepsLost()
        if not self._is_up:
            self._is_up = True
            is_cpu = hello.device == "cpu"
            limits = hello.page_count, hello.max_slots, is_cpu, hello.mixed_tokens, hello.has_states, hello.checkpoints
            windows = tuple((one.window, one.page_count) for one in hello.windows)
            return WorkerUp(source.epoch, *limits, windows)
        return StepsLost() if self._shows_a_loss(hello, oldest) else None

    def _hello(self, last_step: int, query: int = 0) -> SchedulerHello:
        return SchedulerHello(self._worker_epoch, self.page_count, self._session, last_step, query)

    def on_processes(self, processes: list[ProcessStatus]) -> WorkerLost | None:
        """Take the process table: a worker that is starting again is one that died."""
        for process in processes:
            if process.role is Role.WORKER and process.rank == 0 and process.epoch > self._worker_epoch:
                self._worker_epoch = process.epoch
                if self._is_up:
                    self._is_up = False
                    return WorkerLost(process.last_end is not LastEnd.CRASHED)
        return None

    def exempt(self) -> Exempt:
        """Return the frame that does not count the last worker's death: it is pinned on a request."""
        return Exempt(Role.WORKER, 0, Epoch(self._worker_epoch - 1))

    def check(self, source: Source, scheduler_epoch: Epoch) -> None:
        """Raise FrameError for a frame that is not from the current worker to this scheduler."""
        if source.epoch != self._worker_epoch or scheduler_epoch != self._epoch:
            raise FrameError("stale", f"worker epoch {source.epoch}, scheduler epoch {scheduler_epoch}")

    # Steps and results that are lost

    def query_due_s(self, oldest: IssuedStep | None) -> float | None:
        """Return when the worker is to be asked about the oldest step in flight, or told of a session again."""
        if oldest is None:
            return None if self._is_up or not self._session else self._queried_s + QUERY_S
        if not self._is_up:
            return None
        asked_after_s = max(0.0, self._queried_s - oldest.issued_s)
        return oldest.issued_s + asked_after_s + max(QUERY_S, asked_after_s)

    def query(self, last_step: int, now: float) -> SchedulerHello:
        """Return the query that is due, or the hello of a session that the worker has not confirmed."""
        self._queried_s, self._queried_step = now, last_step
        self._query += self._is_up
        return self._hello(last_step, self._query if self._is_up else 0)

    def _shows_a_loss(self, hello: WorkerHello, oldest: IssuedStep | None) -> bool:
        """Say whether the answer to the last query shows that a step sent before it, or a result, has not arrived."""
        if not hello.query or hello.query != self._query:
            return False
        has_lost_result = oldest is not None and oldest.step <= hello.last_step - hello.steps_in_flight
        return hello.last_step < self._queried_step or has_lost_result

    def begin_again(self, last_step: int, now: float) -> SchedulerHello:
        """Begin another session with the same worker, whose steps follow `last_step`."""
        self._session += 1
        self.sessions_lost += 1
        self._is_up = False
        self._queried_s = now
        return self._hello(last_step)
