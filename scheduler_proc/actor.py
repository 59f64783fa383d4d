"""The shell around the scheduler core: frames in, events to the core, frames out, and time."""

import asyncio
import logging
from pathlib import Path
from typing import Any

from quartet.runtime.actor import Context, Metrics
from quartet.wire.codec import Source
from quartet.wire.frames import (
    ProcessTable,
    SchedulerHello,
    SchedulerInbound,
    StepFailed,
    StepResult,
    Submit,
    WorkerHello,
)
from quartet.wire.ids import Role, process_name
from scheduler_proc.core.events import BeginDrain, Event, Tick
from scheduler_proc.core.scheduler import Scheduler
from scheduler_proc.recorder import TraceRecorder
from scheduler_proc.worker_session import WorkerSession

log = logging.getLogger(__name__)


class SchedulerActor:
    """The scheduler process."""

    inbound: Any = SchedulerInbound
    is_threaded = False

    def __init__(self, context: Context) -> None:
        self._context = context
        config = context.config
        model = config.require_model()
        self._worker = process_name(Role.WORKER, 0)
        self._core = Scheduler(
            config.scheduler, config.worker.page_size, model.context_length, model.eos_token_ids, self._worker
        )
        self._session = WorkerSession(context.epoch)
        self._recorder: TraceRecorder | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> dict[str, str | int | float]:
        """Ready at once: requests that come before a worker is up wait for it."""
        config = self._context.config
        if config.server.record_trace:
            self._recorder = TraceRecorder(Path(config.server.record_trace), config.worker.page_size)
            self._core.take_finished()
        return {"policy": self._context.config.scheduler.schedule_policy}

    def on_frame(self, source: Source, frame: Any) -> None:
        """Check who speaks, then let the core act."""
        match frame:
            case WorkerHello():
                self._on_hello(source, frame)
            case StepResult() | StepFailed():
                self._session.check(source, frame.scheduler_epoch)
                if isinstance(frame, StepFailed):
                    log.error("step %d failed: %s: %s", frame.step, frame.kind, frame.message)
                self._handle(frame)
            case _:
                self._handle(frame)

    def _on_hello(self, source: Source, hello: WorkerHello) -> None:
        answer = self._session.on_hello(source, hello)
        if isinstance(answer, SchedulerHello):
            self._context.send(self._worker, answer)
        elif answer is not None:
            self._handle(answer)

    def _handle(self, event: Event) -> None:
        sent = self._core.handle(event, self._context.clock.now())
        if isinstance(event, Submit):
            # The device waits for its step, and everybody else for the device.
            sent.sort(key=lambda one: one[0] != self._worker)
        for destination, frame in sent:
            self._context.send(destination, frame)

    def on_batch_end(self) -> None:
        """Record what has finished, and set the timer for the next deadline."""
        if self._recorder is not None:
            for request in self._core.take_finished():
                self._recorder.record(request)
        if self._timer is None:
            deadline = self._core.next_deadline()
            if deadline is not None:
                delay_s = max(0.0, deadline - self._context.clock.now())
                self._timer = self._loop.call_later(min(delay_s, 1.0), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick())
        self.on_batch_end()

    def on_process_table(self, process_table: ProcessTable) -> None:
        """Learn of a dead worker before its successor speaks; stop taking requests in a drain."""
        event = self._session.on_processes(process_table.processes)
        if event is not None:
            self._handle(event)
        if process_table.is_draining:
            self._handle(BeginDrain())

    def metrics(self) -> Metrics:
        """Queue, batch, KV, ratio and counters."""
        gauges, counters = self._core.snapshot()
        return Metrics(gauges, counters)

    async def drain(self, limit_s: float) -> None:
        """Wait until nothing is held, at most `limit_s`."""
        self._handle(BeginDrain())
        deadline = self._context.clock.now() + limit_s
        while not self._core.is_idle() and self._context.clock.now() < deadline:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        if self._recorder is not None:
            self._recorder.close()
