"""Makes the runner that a configuration names, in the thread that uses it. Loads torch only for a real model."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from quartet.checkpoint.weight_files import prefetch
from quartet.runtime.clock import Clock
from quartet.runtime.context import Facts
from quartet.runtime.installed import require_torch
from quartet.wire.config import Config
from quartet.wire.frames import ProcessTable
from quartet.wire.ids import Role
from worker_proc.contract import Place, Runner, Start

if TYPE_CHECKING:
    import torch

    from worker_proc.weights.tensors import ModelTensors

WEIGHTS_POLL_S = 0.005


def make_runner(
    config: Config,
    clock: Clock,
    progress: Callable[[], None],
    seconds: Facts,
    start: Start = Start.FIRST,
    shared: "SharedWeights | None" = None,
    run_dir: Path | None = None,
    place: Place | None = None,
) -> Runner:
    """Return a runner whose weights are loaded and whose KV pool is not yet allocated; may take minutes.

    Args:
        progress: called while weights are read.
        seconds: gets how long the parts took.
        start: what the runner does before it is ready.
        shared: the weights that another process holds; without, they are read from the files.
        run_dir: of the launch, for what its workers share.
        place: of this rank, if there are several.

    Raises ModelError for a damaged or unsupported model, ConfigError for a setting that does not fit the machine.
    """
    if config.worker.simulated_worker:
        from worker_proc.simulated import SimulatedRunner

        return SimulatedRunner(config, clock)
    require_torch()
    # OpenMP reads these when torch loads it: threads that wait must not take the processor from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from worker_proc.cuda_context import create_context

    # Disk and driver work while torch, which takes seconds, is imported.
    if shared is None:
        prefetch(Path(config.require_model().folder))
    if config.worker.device != "cpu":
        create_context(0 if place is None else place.rank)
    started = time.perf_counter()
    from worker_proc.loading import load_runner

    imported = time.perf_counter()
    runner = load_runner(config, progress, start, None if shared is None else shared.map, run_dir, place)
    seconds |= {"imports_s": imported - started, "load_s": time.perf_counter() - imported}
    return runner


class SharedWeights:
    """The weights that the launch's holder has loaded, or is loading.

    Args:
        run_dir: where the holder puts its manifest.
        table: returns the process table, which says when the holder is ready.
        progress: called while the holder loads, whose own deadline holds.
    """

    def __init__(self, run_dir: str, table: Callable[[], ProcessTable], progress: Callable[[], None]) -> None:
        self._run_dir = Path(run_dir)
        self._table = table
        self._progress = progress

    def map(self, device: "torch.device") -> "ModelTensors":
        """Wait for the holder and return its weights. Raises SharingError if they are gone or on another device."""
        from worker_proc.weights.cuda_ipc import SharingError
        from worker_proc.weights.shared import map_weights, read_manifest

        while (epoch := self._ready_epoch()) is None:
            time.sleep(WEIGHTS_POLL_S)
            self._progress()
        manifest = read_manifest(self._run_dir)
        if manifest.epoch != epoch or manifest.device != device.type:
            raise SharingError(f"the weights are those of epoch {manifest.epoch} on {manifest.device}")
        return map_weights(manifest)

    def _ready_epoch(self) -> int | None:
        """Return the epoch of the holder once it is ready."""
        rows = (row for row in self._table().processes if row.role is Role.WEIGHTS and row.state == "ready")
        return next((row.epoch for row in rows), None)
