"""Run as a child process: a core that answers queries, and whose start is as `model_path` says."""

import asyncio
import errno
from pathlib import Path
from typing import Any

from quartet.runtime import process
from quartet.runtime.context import Context
from quartet.runtime.core import Metrics, Sent
from quartet.runtime.shell import Shell
from quartet.wire.codec import Source
from quartet.wire.errors import ConfigError, ModelError
from quartet.wire.frames import Drain, Exempt, ProcessTable, Query, QueryReply, SchedulerInbound, StepResult
from quartet.wire.ids import Epoch, Role


class StubCore:
    """Answers `Query`; `what` may also be `fail`, `exempt`, or `tick` to be answered by the next tick, 50 ms later."""

    inbound: Any = SchedulerInbound

    def __init__(self) -> None:
        self.batches = 0
        self._later: list[Sent] = []
        self._due_s: float | None = None
        self._fails = False

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        match frame:
            case ProcessTable():
                if frame.serial == 13:
                    raise ZeroDivisionError("made to fail")
                return []
            case Drain():
                return [("api-0", QueryReply(0, f"drained within {frame.limit_s:g} s".encode()))]
        if isinstance(frame, StepResult):
            return []
        assert isinstance(frame, Query)
        if frame.what == "exempt":
            return [("supervisor-0", Exempt(Role.WORKER, 0, Epoch(8)))]
        if frame.what == "fail":
            raise ZeroDivisionError("a query that fails")
        self._fails = frame.what == "fail tick"
        answer = (frame.reply_to, QueryReply(frame.number, frame.argument.encode()))
        if "tick" not in frame.what:
            return [answer]
        self._later, self._due_s = [answer], now + 0.05
        return []

    def tick(self, now: float) -> list[Sent]:
        assert self._due_s is not None
        self._due_s = None
        if self._fails:
            raise ZeroDivisionError("a tick that fails")
        return self._later

    def next_deadline(self) -> float | None:
        return self._due_s

    def is_idle(self) -> bool:
        return True

    def metrics(self) -> Metrics:
        return Metrics({"stub": 1.5}, {"batches": float(self.batches)})


async def main(context: Context) -> None:
    mode = context.config.model.model_path
    if mode == "refused":
        raise ConfigError("--model-path: refused")
    await asyncio.sleep(0.01)
    if mode == "damaged":
        raise ModelError("the model is damaged")
    if mode == "unreadable":
        Path("/proc/self/status/missing").read_bytes()
    if mode == "busy":
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", "/a/file")
    if mode == "buggy":
        raise ZeroDivisionError
    if mode == "phased":
        context.set_phase("idle", 3.5)
    core = StubCore()
    if mode == "buggy core":
        try:
            raise ZeroDivisionError("a core that fails")
        except ZeroDivisionError:
            context.on_bug()

    def count_batch() -> None:
        core.batches += 1

    await Shell(context, core, count_batch).serve({"name": context.name, "epoch": context.epoch})


if __name__ == "__main__":
    process.SNAPSHOT_S = 0.05
    process.run_process(main)
