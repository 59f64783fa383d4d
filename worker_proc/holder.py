"""The process that holds the weights for the workers of a launch with --standby: loads them once, and waits.

It runs no step, so little can end it; its end is that of every worker that has mapped its memory.
"""

import asyncio
import time
from pathlib import Path

from quartet.checkpoint.weight_files import prefetch
from quartet.runtime.context import Context
from quartet.runtime.process import run_process
from worker_proc.cuda_context import create_context

LOAD_DEADLINE_S = 300.0


async def main(context: Context) -> None:
    """Load and share the weights, then wait for the drain, which has nothing to wait for.

    Raises ModelError or ConfigError for what a restart cannot mend."""
    context.set_phase("loading weights", LOAD_DEADLINE_S)
    started = time.perf_counter()
    # The memory belongs to this coroutine until the process ends.
    kept = await asyncio.to_thread(_share, context)
    context.set_phase("holding weights")
    context.ready({"share_s": time.perf_counter() - started})
    context.finished_work()
    await context.drain_requested()
    del kept


def _share(context: Context) -> object:
    """Load the weights and write their manifest; returns what keeps them."""
    prefetch(Path(context.config.require_model().folder))
    if context.config.worker.device != "cpu":
        create_context()
    from worker_proc.loading import share_weights

    return share_weights(context.config, context.progress, Path(context.run_dir), context.epoch)


if __name__ == "__main__":
    run_process(main)
