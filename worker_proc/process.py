"""The worker process: starts the executor thread, reports its metrics, ends with it.

The main loop only sends heartbeats and metrics, so that a long step never looks like a dead process.
"""

import asyncio
import logging
import os
import threading

from quartet.runtime.context import Context, Facts
from quartet.runtime.core import Metrics
from worker_proc.executor import Executor
from worker_proc.start_up import make_runner

logger = logging.getLogger(__name__)

LOST_EXECUTOR_STATUS = 70
CLOSE_TIMEOUT_S = 5.0


async def main(context: Context) -> None:
    """Serve until a drain is over. The scheduler stops sending steps when its requests are done, so it is over at once.

    Raises ModelError or ConfigError for what a restart cannot mend."""
    start_up: Facts = {}
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[Facts] = loop.create_future()

    def announce(facts: Facts) -> None:
        loop.call_soon_threadsafe(_settle, ready, facts)

    executor = Executor(
        context, lambda: make_runner(context.config, context.clock, context.progress, start_up), announce
    )
    thread = threading.Thread(target=_work, args=(executor, loop, ready), name="executor", daemon=True)
    context.report_metrics(lambda: _metrics(executor, start_up))
    thread.start()
    facts = await ready
    start_up.update({name: value for name, value in facts.items() if name.endswith("_s")})
    context.ready({**facts, **start_up})
    await context.drain_requested()
    executor.stop()
    await asyncio.to_thread(thread.join, CLOSE_TIMEOUT_S)


def _work(executor: Executor, loop: asyncio.AbstractEventLoop, ready: "asyncio.Future[Facts]") -> None:
    """Run the executor. Runs in its thread."""
    try:
        executor.run()
    except BaseException as error:
        if executor.is_ready:
            # Nothing can be served without the executor: the supervisor starts another worker.
            logger.exception("the executor ended")
            logging.shutdown()
            os._exit(LOST_EXECUTOR_STATUS)
        loop.call_soon_threadsafe(_fail, ready, error)


def _settle(ready: "asyncio.Future[Facts]", facts: Facts) -> None:
    if not ready.done():
        ready.set_result(facts)


def _fail(ready: "asyncio.Future[Facts]", error: BaseException) -> None:
    if not ready.done():
        ready.set_exception(error)


def _metrics(executor: Executor, start_up: Facts) -> Metrics:
    """Return the seconds of each phase of the start, and what the executor has counted so far."""
    gauges = {f"worker_start_up_{name.removesuffix('_s')}_seconds": float(value) for name, value in [*start_up.items()]}
    return Metrics(gauges, executor.metrics().counters)
