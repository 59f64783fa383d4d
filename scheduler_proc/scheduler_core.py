"""The scheduler process without its sockets: the handshake with the worker in front of the scheduler."""

import logging
from typing import Any

from quartet.runtime.core import Metrics, Sent
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.frames import (
    Drain,
    ProcessTable,
    SchedulerHello,
    SchedulerInbound,
    StepFailed,
    StepResult,
    Submit,
    WorkerHello,
)
from quartet.wire.ids import Epoch, Role, process_name
from scheduler_proc.core.events import BeginDrain, Tick, WorkerUp
from scheduler_proc.core.scheduler import Scheduler
from scheduler_proc.core.sizes import slots_in_force
from scheduler_proc.worker_session import WorkerSession

log = logging.getLogger(__name__)

WORKER = process_name(Role.WORKER, 0)


class SchedulerCore:
    """Turns frames into events of the scheduler.

    Args:
        config: of the launch, with the resolved model.
        epoch: this incarnation of the scheduler.

    `scheduler` is the scheduler itself.
    """

    inbound: Any = SchedulerInbound

    def __init__(self, config: Config, epoch: Epoch) -> None:
        model = config.require_model()
        self.scheduler = Scheduler(
            config.scheduler, config.worker.page_size, model.context_length, model.eos_token_ids, WORKER
        )
        self._config = config
        self._session = WorkerSession(epoch)
        self._slots = 0

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Take one frame; raises FrameError for one of another worker or scheduler incarnation."""
        match frame:
            case StepResult() | StepFailed():
                self._session.check(source, frame.scheduler_epoch)
                if isinstance(frame, StepFailed):
                    log.error("step %d failed: %s: %s", frame.step, frame.kind, frame.message)
            case Submit():
                sent = self.scheduler.handle(frame, now)
                # The device waits for its step, and all other processes for the device.
                sent.sort(key=lambda one: one[0] != WORKER)
                return sent
            case WorkerHello():
                answer = self._session.on_hello(source, frame)
                if isinstance(answer, SchedulerHello):
                    return [(WORKER, answer)]
                return [] if answer is None else self._on_worker_up(answer, now)
            case ProcessTable():
                return self._on_process_table(frame, now)
            case Drain():
                return self.scheduler.handle(BeginDrain(), now)
        return self.scheduler.handle(frame, now)

    def _on_process_table(self, table: ProcessTable, now: float) -> list[Sent]:
        """Learn of a dead worker before its successor's first frame; stop taking requests in a drain."""
        event = self._session.on_processes(table.processes)
        sent = [] if event is None else self.scheduler.handle(event, now)
        return sent + self.scheduler.handle(BeginDrain(), now) if table.is_draining else sent

    def _on_worker_up(self, event: WorkerUp, now: float) -> list[Sent]:
        capacity_tokens = event.page_count * self._config.worker.page_size
        self._slots = slots_in_force(self._config.scheduler, event.max_slots, capacity_tokens, event.is_cpu)
        return self.scheduler.handle(event, now)

    def tick(self, now: float) -> list[Sent]:
        """Do what is due."""
        return self.scheduler.handle(Tick(), now)

    def next_deadline(self) -> float | None:
        """Return when a deadline of a request passes."""
        return self.scheduler.next_deadline()

    def is_idle(self) -> bool:
        """Say whether no request is held and no step is in flight."""
        return self.scheduler.is_idle()

    def metrics(self) -> Metrics:
        """Return queue, batch, KV, ratio and counters; `max_running_reqs` is 0 until a worker has come up."""
        gauges, counters = self.scheduler.snapshot()
        return Metrics({**gauges, "max_running_reqs": float(self._slots)}, counters)
