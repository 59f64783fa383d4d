"""How a launch ends: drained at a signal, or failed because a process cannot be started.

signal ──► drain: one role after the other finishes what it has accepted ──► exit code 0
failure ──► the api processes end every open answer with an error, at most FAILURE_S ──► its exit code
second signal, or either before the first readiness ──► at once
"""

import asyncio
import signal
from collections.abc import Callable, Sequence

from quartet.supervisor.failure import Failure
from quartet.supervisor.plan import DRAIN_ORDER
from quartet.supervisor.slot import ProcessSlot
from quartet.wire.frames import Drain
from quartet.wire.ids import Role

SAME_REQUEST_S = 0.1
"""Signals closer to each other than this are one request to end."""
INNER_DRAIN_S = 2.0
FAILURE_S = 1.0
POLL_S = 0.02


class Shutdown:
    """Decides when the launch ends, and with which exit code. For the supervisor's loop.

    Args:
        slots: the processes.
        drain_limit_s: how long a drain waits for open requests.
        announce: sends the process table, with `is_draining` and `has_failed` as they are then.
        report: shows one line.
    """

    def __init__(
        self,
        slots: Sequence[ProcessSlot],
        drain_limit_s: float,
        announce: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots = slots
        self._drain_limit_s = drain_limit_s
        self._announce = announce
        self._report = report
        self._requested_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self.exit_code: asyncio.Future[int] = self._loop.create_future()
        self.is_draining = False
        self.failure: Failure | None = None
        """Why the launch ends, if it cannot go on."""

    @property
    def has_failed(self) -> bool:
        """Whether the launch ends because it cannot go on."""
        return self.failure is not None

    def on_signal(self, number: signal.Signals, was_ready: bool) -> None:
        """Drain; stop at once before readiness, or if the user insists.

        A group's leader may get one request twice, from `timeout` for example, or SIGHUP after SIGTERM."""
        now = self._loop.time()
        if not was_ready:
            self._finish()
        elif self._task is None:
            self.is_draining = True
            self._requested_s = now
            self._task = self._loop.create_task(self._drain())
            self._announce()
            self._report(f"draining, at most {self._drain_limit_s:g} s; once more to stop at once")
        elif number != signal.SIGHUP and now - self._requested_s > SAME_REQUEST_S:
            self._finish()

    def fail(self, failure: Failure, was_ready: bool) -> None:
        """End because of it. The first failure counts."""
        if self.has_failed or self.exit_code.done():
            return
        self.failure = failure
        if not was_ready:
            self._finish()
            return
        if self._task is not None:
            self._task.cancel()
        self.is_draining = True
        self._task = self._loop.create_task(self._end_answers())
        self._announce()

    def _finish(self) -> None:
        if not self.exit_code.done():
            self.exit_code.set_result(0 if self.failure is None else self.failure.exit_code)

    async def _drain(self) -> None:
        for role in DRAIN_ORDER:
            await self._drain_role(role, self._drain_limit_s if role is Role.API else INNER_DRAIN_S)
        self._finish()

    async def _end_answers(self) -> None:
        """Wait until the api processes have ended every answer, as the process table has them do."""
        await self._drain_role(Role.API, FAILURE_S, spare_s=0.5)
        self._finish()

    async def _drain_role(self, role: Role, limit_s: float, spare_s: float = INNER_DRAIN_S) -> None:
        children = [slot.child for slot in self._slots if slot.child is not None and slot.spec.role is role]
        for child in children:
            child.channel.send(Drain(limit_s))
        deadline = self._loop.time() + limit_s + spare_s
        while any(child.process.poll() is None for child in children) and self._loop.time() < deadline:
            await asyncio.sleep(POLL_S)
