"""Runs a core on the event loop of its process: frames and time go in, the frames that it returns are sent."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from quartet.runtime.context import Context, Facts
from quartet.runtime.core import SUPERVISOR, Core, Metrics, Sent
from quartet.wire.codec import Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import Delta, Drain, ProcessTable, StepResult, Tokens

MAX_TIMER_S = 1.0
DRAIN_POLL_S = 0.02
OUTPUT_FRAMES = frozenset({StepResult, Tokens, Delta})
"""Frames that show that their receiver does its work: output on its way to a client."""


class Shell:
    """One core in one process.

    Args:
        context: the process.
        core: what it runs.
        after_batch: called after each burst of frames and each tick, for I/O that a core may not do.
        metrics: returns the metrics of the process, where they are more than the core's.
    """

    def __init__(
        self,
        context: Context,
        core: Core,
        after_batch: Callable[[], None] | None = None,
        metrics: Callable[[], Metrics] | None = None,
    ) -> None:
        self._context = context
        self._core = core
        self._after_batch = after_batch
        self.metrics = metrics or core.metrics
        self._now = context.clock.now
        self._post = context.send
        self._has_had_output = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0

    async def serve(self, facts: Facts, drain: Callable[[float], Awaitable[None]] | None = None) -> None:
        """Bind the inbox, report ready, and serve until the supervisor requests a drain and that is over.

        Args:
            facts: for the ready line.
            drain: what a drain with a limit in seconds does, if it is not to wait until the core is idle.
        """
        inbox = self._context.open_inbox(self._core.inbound, self)
        try:
            self._arm()
            self._context.ready(facts)
            limit_s = await self._context.drain_requested()
            self._context.set_phase("draining")
            await (drain or self.drain)(limit_s)
        finally:
            inbox.close()
            if self._timer is not None:
                self._timer.cancel()

    async def drain(self, limit_s: float) -> None:
        """Have the core take nothing else, and wait until it is idle, at most `limit_s`."""
        self.send(self._core.handle(SUPERVISOR, Drain(limit_s), self._now()))
        deadline = self._now() + limit_s
        while not self._core.is_idle() and self._now() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)

    def send(self, sent: Iterable[Sent]) -> None:
        """Send what a direct call of the core has returned, and look at its next deadline anew."""
        for destination, frame in sent:
            self._post(destination, frame)
        self._arm()

    # The inbox delivers here

    def on_frame(self, source: Source, frame: Any) -> None:
        """Hand a frame to the core."""
        post = self._post
        try:
            for destination, answer in self._core.handle(source, frame, self._now()):
                post(destination, answer)
        except FrameError:
            raise
        except Exception:
            self._context.on_bug()
            raise
        if not self._has_had_output and type(frame) in OUTPUT_FRAMES:
            self._has_had_output = True
            self._context.finished_work()

    def on_batch_end(self) -> None:
        """Do what follows a burst of frames, and set the timer if none is set."""
        if self._after_batch is not None:
            self._after_batch()
        if self._timer is None:
            self._arm()

    def on_process_table(self, table: ProcessTable) -> None:
        """Hand the process table to the core."""
        try:
            self.send(self._core.handle(SUPERVISOR, table, self._now()))
        except Exception:
            self._context.on_bug()
            raise

    def _arm(self) -> None:
        """Set the timer to the core's next deadline, unless it fires before."""
        due_s = self._core.next_deadline()
        if due_s is None or (self._timer is not None and self._timer_due_s <= due_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        delay_s = min(max(0.0, due_s - self._now()), MAX_TIMER_S)
        self._timer_due_s = due_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            for destination, frame in self._core.tick(self._now()):
                self._post(destination, frame)
        except Exception:
            self._context.on_bug()
            raise
        finally:
            self.on_batch_end()
