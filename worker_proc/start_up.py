"""Makes the runner that a configuration names, in the thread that uses it. Loads torch only for a real model."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from quartet.checkpoint.weight_files import prefetch
from quartet.runtime.clock import Clock
from quartet.runtime.context import Facts
from quartet.wire.config import Config
from worker_proc.contract import Runner


def make_runner(config: Config, clock: Clock, progress: Callable[[], None], seconds: Facts) -> Runner:
    """Return a runner whose weights are loaded and whose KV pool is not yet allocated; may take minutes.

    `progress` is called while weights are read; `seconds` gets how long the parts took.
    Raises ModelError for a damaged or unsupported model, ConfigError for a setting that does not fit the machine.
    """
    if config.worker.simulated_worker:
        from worker_proc.simulated import SimulatedRunner

        return SimulatedRunner(config, clock)
    # OpenMP reads these when torch loads it: threads that wait must not take the processor from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from worker_proc.cuda_context import create_context

    # Disk and driver work while torch, which takes seconds, is imported.
    prefetch(Path(config.require_model().folder))
    if config.worker.device != "cpu":
        create_context()
    started = time.perf_counter()
    from worker_proc.loading import load_runner

    imported = time.perf_counter()
    runner = load_runner(config, progress)
    seconds |= {"imports_s": imported - started, "load_s": time.perf_counter() - imported}
    return runner
