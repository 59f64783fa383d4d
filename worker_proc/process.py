"""The worker process, or one of its ranks: starts the executor thread, reports its metrics, ends with it.

The main loop only sends heartbeats and metrics, so that a long step never looks like a dead process. A standby is the
same process, whose executor is held back until the process gets the place of a worker that has died.
"""

import asyncio
import logging
import os
import threading
import time
from pathlib import Path

from quartet.runtime.context import Context, Facts
from quartet.runtime.core import Metrics
from quartet.wire.ids import Role
from worker_proc.contract import Place, Runner, Start
from worker_proc.executor import Executor
from worker_proc.follower import Follower
from worker_proc.start_up import SharedWeights, make_runner

logger = logging.getLogger(__name__)

LOST_EXECUTOR_STATUS = 70
CLOSE_TIMEOUT_S = 5.0


async def main(context: Context) -> None:
    """Serve until a drain is over. The scheduler stops sending steps when its requests are done, so it is over at once.

    Raises ModelError or ConfigError for what a restart cannot mend."""
    worker = Worker(context)
    if context.role is Role.STANDBY and not await worker.stand_by():
        return
    await worker.serve()


class Worker:
    """The executor's thread and the seconds of its start."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        # What the executor's thread tells the loop: that a standby has loaded, and the facts of a worker that is ready.
        self._loaded: asyncio.Future[Facts] = self._loop.create_future()
        self._ready: asyncio.Future[Facts] = self._loop.create_future()
        self._promoted = threading.Event()
        self._seconds: Facts = {}
        self._executor: Executor | Follower
        if context.rank:
            self._executor = Follower(context, self._make_runner, self._announce)
        else:
            hold = self._hold if context.role is Role.STANDBY else None
            self._executor = Executor(context, self._make_runner, self._announce, hold)
        context.report_metrics(self._metrics)
        self._thread = threading.Thread(target=self._work, name="executor", daemon=True)
        self._thread.start()

    async def stand_by(self) -> bool:
        """Load what a standby loads, report ready, and wait; returns whether the process has got a worker's place."""
        await self._loaded
        self._context.ready({})
        self._context.finished_work()
        if not await self._context.promoted():
            return False
        self._seconds.clear()
        self._promoted_s = time.perf_counter()
        self._promoted.set()
        return True

    async def serve(self) -> None:
        """Report ready once a scheduler has been answered, and serve until the drain. Rank 0 has the facts of all."""
        facts = await self._ready
        self._seconds.update({name: value for name, value in facts.items() if name.endswith("_s")})
        if self._promoted.is_set():
            self._seconds["takeover_s"] = time.perf_counter() - self._promoted_s
        self._context.ready({**facts, **self._seconds} if facts else {})
        await self._context.drain_requested()
        self._executor.stop()
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)

    # In the executor's thread

    def _make_runner(self) -> Runner:
        context, server = self._context, self._context.config.server
        shared = None
        if server.standby:
            shared = SharedWeights(context.run_dir, lambda: context.process_table, context.progress)
        start = Start.RECOVERY if context.is_recovery else Start.FIRST
        if context.role is Role.STANDBY:
            start = Start.STANDBY
        run_dir, ranks, place = Path(context.run_dir), context.config.worker.tp_size, None
        if ranks > 1:
            place = Place(context.rank, ranks, run_dir / f"ranks-{context.epoch}")
        clock, progress = context.clock, context.progress
        return make_runner(context.config, clock, progress, self._seconds, start, shared, run_dir, place)

    def _hold(self) -> None:
        self._loop.call_soon_threadsafe(_settle, self._loaded, {})
        self._promoted.wait()

    def _announce(self, facts: Facts) -> None:
        self._loop.call_soon_threadsafe(_settle, self._ready, facts)

    def _work(self) -> None:
        try:
            self._executor.run()
        except BaseException as error:
            if self._executor.is_ready:
                # Nothing can be served without the executor: the supervisor starts another worker.
                logger.exception("the executor ended")
                logging.shutdown()
                os._exit(LOST_EXECUTOR_STATUS)
            is_waiting = self._context.role is Role.STANDBY
            self._loop.call_soon_threadsafe(_fail, self._loaded if is_waiting else self._ready, error)

    def _metrics(self) -> Metrics:
        """Return the seconds of each phase of the start, and what the executor has counted so far."""
        seconds = [*self._seconds.items()]
        gauges = {
            f'worker_start_up_seconds{{phase="{name.removesuffix("_s")}"}}': float(value) for name, value in seconds
        }
        return Metrics(gauges, self._executor.metrics().counters)


def _settle(future: "asyncio.Future[Facts]", facts: Facts) -> None:
    if not future.done():
        future.set_result(facts)


def _fail(future: "asyncio.Future[Facts]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
