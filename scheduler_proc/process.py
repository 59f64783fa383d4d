"""The scheduler process: serves its core; records a trace and publishes KV-cache events if they are wanted."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from quartet.runtime.context import Context
from quartet.runtime.shell import Shell
from quartet.wire.config import Config
from quartet.wire.kv_events import KvEventsConfig, parse_kv_events
from scheduler_proc.kv_publisher import KvPublisher
from scheduler_proc.recorder import TraceRecorder
from scheduler_proc.scheduler_core import SchedulerCore

AfterBatch = Callable[[], None]


async def main(context: Context) -> None:
    """Serve until a drain is over. Ready at once: requests that come before a worker is up wait for it.

    Raises ConfigError for a trace file that cannot be written, and for an address of events that cannot be bound."""
    config = context.config
    core = SchedulerCore(config, context.epoch)
    async with AsyncExitStack() as stack:
        after_batch: list[AfterBatch] = []
        if config.server.record_trace:
            after_batch.append(await stack.enter_async_context(_recording(core, config)))
        events = parse_kv_events(config.server.kv_events_config)
        if events is not None:
            after_batch.append(await stack.enter_async_context(_publishing(core, events, context)))
        shell = Shell(context, core, _all_of(after_batch))
        await shell.serve({"policy": config.scheduler.schedule_policy})


def _all_of(calls: list[AfterBatch]) -> AfterBatch | None:
    if len(calls) < 2:
        return calls[0] if calls else None

    def call() -> None:
        for one in calls:
            one()

    return call


@asynccontextmanager
async def _recording(core: SchedulerCore, config: Config) -> AsyncIterator[AfterBatch]:
    recorder = TraceRecorder(Path(config.server.record_trace), config.worker.page_size)
    # The scheduler keeps finished requests from the first call on.
    core.scheduler.take_finished()
    try:
        yield lambda: recorder.record_all(core.scheduler.take_finished())
    finally:
        recorder.close()


@asynccontextmanager
async def _publishing(core: SchedulerCore, events: KvEventsConfig, context: Context) -> AsyncIterator[AfterBatch]:
    publisher = KvPublisher(events, context.config.worker.page_size, time.time)
    kv = core.scheduler.kv
    kv.keep_log(events.max_queue_size)

    try:
        if not context.is_recovery:
            publisher.open()
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(publisher.serve())
            yield lambda: publisher.publish(kv.take_page_changes())
            answering.cancel()
    finally:
        publisher.close()
