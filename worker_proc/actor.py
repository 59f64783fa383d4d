"""The worker as the runtime sees it: starts the executor thread, reports its metrics, dies with it.

The main loop does nothing but heartbeats and metrics, so that a long step never looks like a dead process.
"""

import asyncio
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from quartet.runtime.actor import Context, Metrics
from quartet.wire.codec import Source
from quartet.wire.frames import ProcessTable, WorkerInbound
from worker_proc.contract import Runner
from worker_proc.executor import Executor

logger = logging.getLogger(__name__)

LOST_EXECUTOR_STATUS = 70
CLOSE_TIMEOUT_S = 5.0

Facts = dict[str, str | int | float]


class WorkerActor:
    """Runs the executor in a thread of its own.

    Args:
        context: the runtime; the executor's thread binds its blocking link.
    """

    inbound = WorkerInbound
    is_threaded = True

    def __init__(self, context: Context) -> None:
        self._context = context
        self._executor: Executor | None = None
        self._thread: threading.Thread | None = None
        self._start_up: Facts = {}

    async def start(self) -> Facts:
        """Return once the model is loaded and a scheduler's page count is allocated and warm.

        Raises ModelError or ConfigError for what a restart cannot mend."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Facts] = loop.create_future()

        def announce(facts: Facts) -> None:
            loop.call_soon_threadsafe(_settle, ready, facts)

        def work(executor: Executor) -> None:
            try:
                executor.run()
            except BaseException as error:
                if executor.is_ready:
                    # Nothing can be served without the executor: the supervisor starts another worker.
                    logger.exception("the executor ended")
                    logging.shutdown()
                    os._exit(LOST_EXECUTOR_STATUS)
                loop.call_soon_threadsafe(_settle, ready, error)

        self._executor = Executor(self._context, self._make_runner, announce)
        self._thread = threading.Thread(target=work, args=(self._executor,), name="executor", daemon=True)
        self._thread.start()
        facts = {**await ready, **self._start_up}
        self._start_up = {name: value for name, value in facts.items() if name.endswith("_s")}
        return facts

    def on_frame(self, source: Source, frame: Any) -> None:
        """Never called: the executor reads the inbox."""

    def on_batch_end(self) -> None:
        """Never called: the executor reads the inbox."""

    def on_process_table(self, process_table: ProcessTable) -> None:
        """Nothing to do: the executor looks at the process table itself."""

    def metrics(self) -> Metrics:
        """Return what the executor has counted so far."""
        if self._executor is None:
            return Metrics({}, {})
        counters = self._executor.counters
        return Metrics(
            gauges={
                f"worker_start_up_{name.removesuffix('_s')}_seconds": float(value)
                for name, value in self._start_up.items()
            },
            counters={
                "worker_steps": counters.steps,
                "worker_failed_steps": counters.failed_steps,
                "worker_stale_frames": counters.stale_frames,
                "worker_sampled_tokens": counters.sampled_tokens,
                "worker_prefill_tokens": counters.prefill_tokens,
                "worker_busy_seconds": counters.busy_s,
                "worker_compiles_after_ready": counters.compiles_after_ready,
            },
        )

    async def drain(self, limit_s: float) -> None:
        """Return at once: the scheduler stops sending steps when its requests are done."""

    async def close(self) -> None:
        """End the executor thread."""
        if self._executor is None or self._thread is None:
            return
        self._executor.stop()
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)

    def _make_runner(self) -> Runner:
        # Imported here so that a simulated worker never loads torch, and torch loads in the executor's thread.
        if self._context.config.worker.simulated_worker:
            from worker_proc.simulated import SimulatedRunner

            return SimulatedRunner(self._context.config, self._context.clock)
        from worker_proc.cuda_context import create_context
        from worker_proc.weights.folder import prefetch

        # Disk and driver work while torch, which takes seconds, is imported.
        prefetch(Path(self._context.config.require_model().folder))
        if self._context.config.worker.device != "cpu":
            create_context()
        started = time.perf_counter()
        from worker_proc.loading import load_runner

        imported = time.perf_counter()
        runner = load_runner(self._context.config, self._context.progress)
        self._start_up = {"imports_s": imported - started, "load_s": time.perf_counter() - imported}
        return runner


def _settle(ready: "asyncio.Future[Facts]", outcome: Facts | BaseException) -> None:
    if ready.done():
        return
    if isinstance(outcome, BaseException):
        ready.set_exception(outcome)
    else:
        ready.set_result(outcome)
