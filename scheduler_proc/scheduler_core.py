"""The scheduler process without its sockets: the handshake with the worker in front of the scheduler."""

import logging
from typing import Any

from quartet.runtime.core import SUPERVISOR_NAME, Metrics, Sent
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.frames import (
    Drain,
    GrammarCompiled,
    ProcessTable,
    SchedulerHello,
    SchedulerInbound,
    StepFailed,
    StepResult,
    Submit,
    WorkerHello,
)
from quartet.wire.ids import Epoch, Role, process_name
from scheduler_proc.core.events import BeginDrain, StepsLost, Tick, WorkerUp
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
            case GrammarCompiled():
                self._session.check(source, frame.scheduler_epoch)
            case StepResult() | StepFailed():
                self._session.check(source, frame.scheduler_epoch)
                if isinstance(frame, StepFailed):
                    log.error("step %d failed: %s: %s", frame.step, frame.kind, frame.message)
                oldest = self.scheduler.in_flight.oldest
                if oldest is not None and oldest.step < frame.step and self.scheduler.in_flight.find(frame.step):
                    return self._begin_session(now)
            case Submit():
                sent = self.scheduler.handle(frame, now)
                # The device waits for its step, and all other processes for the device.
                sent.sort(key=lambda one: one[0] != WORKER)
                return sent
            case WorkerHello():
                return self._on_hello(source, frame, now)
            case ProcessTable():
                return self._on_process_table(frame, now)
            case Drain():
                return self.scheduler.handle(BeginDrain(), now)
        return self.scheduler.handle(frame, now)

    def _on_hello(self, source: Source, hello: WorkerHello, now: float) -> list[Sent]:
        in_flight = self.scheduler.in_flight
        answer = self._session.on_hello(source, hello, in_flight.last_step, in_flight.oldest)
        match answer:
            case SchedulerHello():
                return [(WORKER, answer)]
            case StepsLost():
                return self._begin_session(now)
            case WorkerUp():
                return self._on_worker_up(answer, now)
        return []

    def _begin_session(self, now: float) -> list[Sent]:
        """A step or a result is lost: what was in flight is computed again by a worker with empty slots."""
        log.error("frames between scheduler and worker are lost; the steps in flight are computed again")
        sent = self.scheduler.handle(StepsLost(), now)
        return [(WORKER, self._session.begin_again(self.scheduler.in_flight.last_step, now)), *sent]

    def _on_process_table(self, table: ProcessTable, now: float) -> list[Sent]:
        """Learn of a dead worker before its successor's first frame; stop taking requests in a drain."""
        event = self._session.on_processes(table.processes)
        found = self.scheduler.quarantined_count
        sent = [] if event is None else self.scheduler.handle(event, now)
        if self.scheduler.quarantined_count > found:
            sent.append((SUPERVISOR_NAME, self._session.exempt()))
        return sent + self.scheduler.handle(BeginDrain(), now) if table.is_draining else sent

    def _on_worker_up(self, event: WorkerUp, now: float) -> list[Sent]:
        capacity_tokens = event.page_count * self._config.worker.page_size
        self._slots = slots_in_force(self._config.scheduler, event.max_slots, capacity_tokens, event.is_cpu)
        return self.scheduler.handle(event, now)

    def tick(self, now: float) -> list[Sent]:
        """Do what is due: deadlines of requests, and a question to the worker about a step that takes long."""
        sent = self.scheduler.handle(Tick(), now)
        due_s = self._session.query_due_s(self.scheduler.in_flight.oldest)
        if due_s is not None and due_s <= now:
            sent.append((WORKER, self._session.query(self.scheduler.in_flight.last_step, now)))
        return sent

    def next_deadline(self) -> float | None:
        """Return when a deadline of a request passes, or the worker is to be asked about a step."""
        due = (self.scheduler.next_deadline(), self._session.query_due_s(self.scheduler.in_flight.oldest))
        return min((due_s for due_s in due if due_s is not None), default=None)

    def is_idle(self) -> bool:
        """Say whether no request is held and no step is in flight."""
        return self.scheduler.is_idle()

    def metrics(self) -> Metrics:
        """Return queue, batch, KV, ratio and counters; `max_running_reqs` is 0 until a worker has come up."""
        gauges, counters = self.scheduler.snapshot()
        waiting_tokens = float(self.scheduler.queue.waiting_tokens)
        gauges = {**gauges, "num_queue_tokens": waiting_tokens, "max_running_reqs": float(self._slots)}
        gauges["num_grammar_queue_reqs"] = float(len(self.scheduler.grammars))
        reasons = {**self.scheduler.queue.by_reason(), "grammar": len(self.scheduler.grammars)}
        gauges |= {f'num_queue_reqs_by_reason{{reason="{name}"}}': float(count) for name, count in reasons.items()}
        return Metrics(gauges, {**counters, **self._faults()})

    def _faults(self) -> dict[str, float]:
        lost, shortages = self._session.sessions_lost, self.scheduler.memory.shortages
        return {"worker_sessions_lost": float(lost), "step_memory_shortages": float(shortages)}
