"""The handshake with the worker: whether one is up, its epoch, and the page count it must allocate.

The first worker proposes the page count that it can hold; a later one allocates exactly that count or fails. Frames
of any other epoch are dropped. Sans-IO, like the core.
"""

from quartet.wire.codec import Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import ProcessStatus, SchedulerHello, WorkerHello
from quartet.wire.ids import Epoch, Role
from scheduler_proc.core.events import WorkerLost, WorkerUp


class WorkerSession:
    """Tracks the current worker incarnation.

    Args:
        epoch: this scheduler's epoch; a hello for another one is stale.
    """

    def __init__(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._worker_epoch = Epoch(0)
        self._is_up = False
        self.page_count = 0

    def on_hello(self, source: Source, hello: WorkerHello) -> SchedulerHello | WorkerUp | None:
        """Take a worker's hello; returns the answer, or the event for the core, or None for a repetition.

        Raises FrameError for a stale one. A worker that cannot hold the agreed page count fails by itself.
        """
        if source.epoch < self._worker_epoch:
            raise FrameError("stale", f"worker epoch {source.epoch}")
        if source.epoch > self._worker_epoch:
            self._worker_epoch, self._is_up = source.epoch, False
        if not hello.is_ready:
            if self.page_count == 0:
                self.page_count = hello.page_count
            return SchedulerHello(source.epoch, self.page_count)
        if hello.scheduler_epoch != self._epoch or hello.page_count != self.page_count:
            raise FrameError("stale", "hello for another scheduler")
        if self._is_up:
            return None
        self._is_up = True
        return WorkerUp(source.epoch, hello.page_count, hello.max_slots, hello.device == "cpu")

    def on_processes(self, processes: list[ProcessStatus]) -> WorkerLost | None:
        """Take the process table: a worker that is starting again is one that died."""
        for process in processes:
            if process.role is Role.WORKER and process.rank == 0 and process.epoch > self._worker_epoch:
                self._worker_epoch = process.epoch
                if self._is_up:
                    self._is_up = False
                    return WorkerLost(process.was_killed)
        return None

    def check(self, source: Source, scheduler_epoch: Epoch) -> None:
        """Raise FrameError for a frame that is not from the current worker to this scheduler."""
        if source.epoch != self._worker_epoch or scheduler_epoch != self._epoch:
            raise FrameError("stale", f"worker epoch {source.epoch}, scheduler epoch {scheduler_epoch}")
