"""A process context without a process: the test delivers frames and sees what the main coroutine sends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from quartet.runtime.clock import Clock, MonotonicClock
from quartet.runtime.context import BlockingLink, Context, Facts, FrameHandler
from quartet.runtime.core import Metrics
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.frames import ProcessTable
from quartet.wire.ids import Epoch, Role, process_name

Main = Callable[[Context], Awaitable[None]]


class FakeInbox:
    """An inbox whose frames come from the test."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class FakeContext:
    """Implements quartet.runtime.context.Context."""

    def __init__(
        self, role: Role, config: Config, clock: Clock | None = None, listen_fd: int = -1, run_dir: str = "/nowhere"
    ) -> None:
        self.role, self.rank, self.epoch = role, 0, Epoch(1)
        self.name = process_name(role, 0)
        self.config = config
        self.clock: Clock = clock or MonotonicClock()
        self.listen_fd = listen_fd
        self.run_dir, self.is_recovery = run_dir, False
        self.process_table = ProcessTable([], False)
        self.sent: list[tuple[str, Any]] = []
        self.phases: list[tuple[str, float]] = []
        self.steps_of_progress = 0
        self.has_finished_work = False
        self.facts: Facts | None = None
        self.metrics: Callable[[], Metrics] = lambda: Metrics({}, {})
        self.inbox = FakeInbox()
        self._handler: FrameHandler | None = None
        self._drain_limit_s: float | None = None
        self.is_promoted = False

    # Context

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        self.sent.append((destination, frame))

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None:
        self.phases.append((phase, deadline_s))

    def progress(self) -> None:
        self.steps_of_progress += 1

    def finished_work(self) -> None:
        self.has_finished_work = True

    def on_bug(self) -> None:
        pass

    def open_inbox(self, inbound: Any, handler: FrameHandler) -> FakeInbox:
        self._handler = handler
        self.metrics = handler.metrics
        return self.inbox

    def blocking_link(self, inbound: Any) -> BlockingLink:
        raise NotImplementedError

    def report_metrics(self, metrics: Callable[[], Metrics]) -> None:
        self.metrics = metrics

    def process_metrics(self) -> Metrics:
        return Metrics({}, {})

    def ready(self, facts: Facts) -> None:
        self.facts = facts

    async def promoted(self) -> bool:
        while not self.is_promoted and self._drain_limit_s is None:
            await asyncio.sleep(0.001)
        return self.is_promoted

    async def drain_requested(self) -> float:
        while self._drain_limit_s is None:
            await asyncio.sleep(0.001)
        return self._drain_limit_s

    # The test's side

    def deliver(self, source: Source, frame: Any) -> None:
        """Deliver one frame as a burst of its own."""
        assert self._handler is not None, "the inbox is not open"
        self._handler.on_frame(source, frame)
        self._handler.on_batch_end()

    def announce(self, table: ProcessTable) -> None:
        """Change the process table."""
        self.process_table = table
        if self._handler is not None:
            self._handler.on_process_table(table)

    def request_drain(self, limit_s: float) -> None:
        """Do what the supervisor does to end the process."""
        self._drain_limit_s = limit_s


@contextlib.asynccontextmanager
async def running(main: Main, context: FakeContext, limit_s: float = 60.0) -> AsyncIterator[asyncio.Task[None]]:
    """Run a main coroutine until it is ready, then the block; at its end drain with no time to wait.

    Raises what the main coroutine raises."""

    async def run() -> None:
        await main(context)

    task = asyncio.create_task(run())
    try:
        async with asyncio.timeout(limit_s):
            while context.facts is None and not task.done():
                await asyncio.sleep(0.001)
        if task.done():
            task.result()
        yield task
        context.request_drain(0.0)
        await asyncio.wait_for(task, limit_s)
    finally:
        task.cancel()
