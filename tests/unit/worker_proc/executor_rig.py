"""An executor on a simulated runner over an in-memory link, polled by the test."""

import collections
from pathlib import Path
from typing import Any

import msgspec
from tiny_models import TINY, resolved

from quartet.runtime.clock import ManualClock
from quartet.wire.codec import Source
from quartet.wire.config import Config, SchedulerConfig, WorkerConfig
from quartet.wire.frames import (
    Chunk,
    Enter,
    ProcessStatus,
    ProcessTable,
    SamplingParams,
    SchedulerHello,
    Step,
    WorkerHello,
    pack_ids,
)
from quartet.wire.ids import Epoch, Role
from tests.support.fake_context import FakeContext
from worker_proc.executor import IDLE_POLL_S, Executor
from worker_proc.simulated import SimulatedRunner

WORKER = Epoch(4)


class MemoryLink:
    """In-memory BlockingLink: a queue of frames in, a list of frames out. Without frames `recv` advances the clock."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.inbox: collections.deque[tuple[Source, Any]] = collections.deque()
        self.sent: list[msgspec.Struct] = []
        self.is_idle = self.is_loaded = False

    def recv(self, timeout_s: float) -> tuple[Source, Any] | None:
        if self.inbox:
            return self.inbox.popleft()
        self.clock.advance(timeout_s)
        self.is_idle = timeout_s >= IDLE_POLL_S
        return None

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        assert destination == "scheduler-0"
        self.sent.append(frame)


class WorkerContext(FakeContext):
    """A worker's context whose link is in memory."""

    def __init__(self, config: Config) -> None:
        super().__init__(Role.WORKER, config, ManualClock())
        self.epoch = WORKER
        assert isinstance(self.clock, ManualClock)
        self.manual_clock = self.clock
        self.link = MemoryLink(self.manual_clock)

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        raise AssertionError("the worker sends through its link")

    def blocking_link(self, inbound: Any) -> MemoryLink:
        return self.link

    def show_scheduler(self, epoch: int) -> None:
        self.process_table = ProcessTable(
            [ProcessStatus(Role.SCHEDULER, 0, 1, Epoch(epoch), "ready", "idle", 0)], False
        )

    def arrive(self, frame: msgspec.Struct, epoch: int = 1) -> None:
        self.link.inbox.append((Source(Role.SCHEDULER, 0, Epoch(epoch)), frame))


def settings(step_ms: float = 0.0) -> Config:
    return Config(
        worker=WorkerConfig(page_size=4, max_total_tokens=400, simulated_worker=True, simulated_step_ms=step_ms),
        scheduler=SchedulerConfig(max_running_requests=4),
        resolved=resolved(Path(), TINY),
    )


def step(number: int, worker: int = WORKER, decode: bool = True, **changes: Any) -> Step:
    values = {"release": b"", "enter": [], "pages": b"", "chunks": [], **changes}
    return Step(worker_epoch=Epoch(worker), step=number, decode=decode, **values)


def entering(number: int, slot: int = 0) -> Step:
    enter = Enter(slot, 1, pack_ids([3, 4, 5]), 3, 0, pack_ids([slot * 5 + i for i in (1, 2, 3)]), SamplingParams(), 0)
    return step(number, enter=[enter], chunks=[Chunk(slot, 3, True)])


class Rig:
    """An executor on a simulated runner, polled by the test."""

    def __init__(self, step_ms: float = 0.0) -> None:
        self.context = WorkerContext(settings(step_ms))
        self.ready: list[dict[str, Any]] = []
        self.runner = SimulatedRunner(self.context.config, self.context.clock, self.context.manual_clock.advance)
        self.executor = Executor(self.context, lambda: self.runner, self.ready.append)

    def run(self) -> list[msgspec.Struct]:
        """Poll until the executor is idle; return the frames it sent."""
        link = self.context.link
        if not link.is_loaded:
            link.is_loaded = True
            self.executor.load()
        link.is_idle = False
        while not link.is_idle:
            self.executor.poll_once()
        sent, link.sent = link.sent, []
        return sent

    def connect(self, epoch: int = 1) -> None:
        self.context.show_scheduler(epoch)
        (hello,) = self.run()
        assert isinstance(hello, WorkerHello)
        self.context.arrive(SchedulerHello(WORKER, 100), epoch)
        (ready,) = self.run()
        assert isinstance(ready, WorkerHello) and ready.is_ready
