"""The hello protocol between a worker and successive schedulers; sans-IO, driven by the executor.

In order::

    a scheduler epoch appears ──► WorkerHello(not ready, proposed pages), repeated until answered
    SchedulerHello ──► drop all slots, allocate exactly its pages ──► WorkerHello(ready)
    Step of that scheduler for this worker, next in number ──► run; every other Step is stale
    SchedulerHello of a later session ──► as the first; of the same session ──► WorkerHello with what was done so far
"""

from collections.abc import Callable

from quartet.wire.frames import ProcessTable, SchedulerHello, Step, WindowPages, WorkerHello
from quartet.wire.ids import Epoch, Role
from worker_proc.contract import Capacity

REPEAT_S = 0.5
MAX_REPEATS = 10
NO_EPOCH = Epoch(-1)


class Session:
    """The scheduler that the worker serves.

    Args:
        worker_epoch: this incarnation of the worker.
        capacity: returns the runner's current limits.
    """

    def __init__(self, worker_epoch: Epoch, capacity: Callable[[], Capacity]) -> None:
        self._worker_epoch = worker_epoch
        self._capacity = capacity
        self._seen = NO_EPOCH
        self._greeted_at = float("-inf")
        self._last_step = self._first_step = 0
        self._repeats_left = 0
        self._served = 0
        self.scheduler_epoch = NO_EPOCH

    def greet(self, process_table: ProcessTable, now: float) -> WorkerHello | None:
        """Return the hello due at `now`, if any: to a scheduler newer than the one served, or the last hello again,
        which may have been lost, until the first step shows that it arrived."""
        newest = max((p.epoch for p in process_table.processes if p.role == Role.SCHEDULER), default=NO_EPOCH)
        if newest > self._seen:
            self._seen, self._greeted_at = newest, float("-inf")
        due_s = self.next_greeting_s()
        if due_s is None or now < due_s:
            return None
        is_served = self._is_served
        self._greeted_at = now
        self._repeats_left -= is_served
        return self._hello(self._seen, is_ready=is_served)

    def next_greeting_s(self) -> float | None:
        """Return when the next hello is due, or None if none is."""
        if self._is_served and (self._last_step > self._first_step or self._repeats_left == 0):
            return None
        return self._greeted_at + REPEAT_S

    @property
    def _is_served(self) -> bool:
        return self._seen <= self.scheduler_epoch

    def accepts_hello(self, source_epoch: Epoch, frame: SchedulerHello) -> bool:
        """Return whether the hello begins a session: of a scheduler newer than the one served, or its next one."""
        if frame.worker_epoch != self._worker_epoch:
            return False
        if source_epoch == self.scheduler_epoch:
            return frame.session > self._served
        return source_epoch > max(self.scheduler_epoch, self._seen - 1)

    def begin(self, source_epoch: Epoch, frame: SchedulerHello) -> WorkerHello:
        """Serve that session of the scheduler from here on; return the hello that confirms it."""
        self.scheduler_epoch = self._seen = source_epoch
        self._served = frame.session
        self._last_step = self._first_step = frame.last_step
        self._repeats_left = MAX_REPEATS
        return self._hello(source_epoch, is_ready=True)

    def is_query(self, source_epoch: Epoch, frame: SchedulerHello) -> bool:
        """Return whether the hello asks for the state of the session that is served."""
        is_current = source_epoch == self.scheduler_epoch and frame.session == self._served
        return is_current and frame.worker_epoch == self._worker_epoch and frame.query > 0

    def report(self, query: int, steps_in_flight: int) -> WorkerHello:
        """Return the answer to a query."""
        return self._hello(self.scheduler_epoch, is_ready=True, query=query, steps_in_flight=steps_in_flight)

    def accepts_step(self, source_epoch: Epoch, frame: Step) -> bool:
        """Return whether the step is from the scheduler being served, for this incarnation, and the next in number.

        Without the step before it the slots are not what it expects: the scheduler finds that out by a query."""
        if source_epoch != self.scheduler_epoch or frame.worker_epoch != self._worker_epoch:
            return False
        if frame.step != self._last_step + 1:
            return False
        self._last_step = frame.step
        return True

    def _hello(self, epoch: Epoch, is_ready: bool, query: int = 0, steps_in_flight: int = 0) -> WorkerHello:
        capacity = self._capacity()
        return WorkerHello(
            scheduler_epoch=epoch,
            is_ready=is_ready,
            page_size=capacity.page_size,
            page_count=capacity.page_count,
            max_slots=capacity.max_slots,
            vocab_size=capacity.vocab_size,
            context_length=capacity.context_length,
            device=capacity.device,
            mixed_tokens=capacity.mixed_tokens,
            has_states=capacity.has_states,
            checkpoints=capacity.checkpoints,
            windows=tuple(WindowPages(one.window, one.pages(capacity.page_count)) for one in capacity.windows),
            session=self._served,
            query=query,
            last_step=self._last_step,
            steps_in_flight=steps_in_flight,
        )
