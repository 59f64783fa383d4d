"""Run as a child process: an actor that answers questions, and whose start is as `model_path` says."""

import asyncio
from typing import Any

from quartet.runtime import process
from quartet.runtime.actor import Context, Metrics
from quartet.wire.codec import Source
from quartet.wire.errors import ConfigError, ModelError
from quartet.wire.frames import ProcessTable, Query, QueryReply, SchedulerInbound


class StubActor:
    """Answers `Query`; `what` may also be `fail` or `phase`."""

    inbound: Any = SchedulerInbound
    is_threaded = False

    def __init__(self, context: Context) -> None:
        self._context = context
        self._batches = 0
        if self._mode == "refused":
            raise ConfigError("--model-path: refused")

    @property
    def _mode(self) -> str:
        return self._context.config.model.model_path

    async def start(self) -> dict[str, str | int | float]:
        await asyncio.sleep(0.01)
        if self._mode == "damaged":
            raise ModelError("the model is damaged")
        if self._mode == "buggy":
            raise ZeroDivisionError
        if self._mode == "phased":
            self._context.set_phase("idle", 3.5)
        return {"name": self._context.name, "epoch": self._context.epoch}

    def on_frame(self, source: Source, frame: Any) -> None:
        assert isinstance(frame, Query)
        if frame.what == "fail":
            raise ZeroDivisionError("asked to")
        self._context.send(frame.reply_to, QueryReply(frame.ask, frame.argument.encode()))

    def on_batch_end(self) -> None:
        self._batches += 1

    def on_process_table(self, process_table: ProcessTable) -> None:
        if process_table.serial == 13:
            raise ZeroDivisionError("an unlucky table")

    def metrics(self) -> Metrics:
        return Metrics({"stub": 1.5}, {"batches": float(self._batches)})

    async def drain(self, limit_s: float) -> None:
        self._context.send("api-0", QueryReply(0, f"drained within {limit_s:g} s".encode()))

    async def close(self) -> None: ...


if __name__ == "__main__":
    process.SNAPSHOT_S = 0.05
    process.run_process(StubActor)
