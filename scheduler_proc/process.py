"""The scheduler process: serves its core, and records a trace if one is wanted."""

from pathlib import Path

from quartet.runtime.context import Context
from quartet.runtime.shell import Shell
from scheduler_proc.recorder import TraceRecorder
from scheduler_proc.scheduler_core import SchedulerCore


async def main(context: Context) -> None:
    """Serve until a drain is over. Ready at once: requests that come before a worker is up wait for it.

    Raises ConfigError for a trace file that cannot be written."""
    config = context.config
    core = SchedulerCore(config, context.epoch)
    facts: dict[str, str | int | float] = {"policy": config.scheduler.schedule_policy}
    if not config.server.record_trace:
        await Shell(context, core).serve(facts)
        return
    recorder = TraceRecorder(Path(config.server.record_trace), config.worker.page_size)
    # The scheduler keeps finished requests from the first call on.
    core.scheduler.take_finished()
    try:
        await Shell(context, core, lambda: recorder.record_all(core.scheduler.take_finished())).serve(facts)
    finally:
        recorder.close()
