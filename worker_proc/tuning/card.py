"""Tunes the linears of one model on the CUDA device that is there."""

from collections.abc import Iterator

import torch

from kernels.pdl import is_hopper
from quartet.checkpoint.spec import ModelSpec
from worker_proc.compilation import compile_ahead, set_kernel_cache
from worker_proc.tuning.linears import Linear, linears_of, tiles_for
from worker_proc.tuning.tables import use_tables
from worker_proc.tuning.timing import LinearTimer, read_bytes_per_s, weights_of
from worker_proc.tuning.tune import Outcome, sizes, tune_linear


class Card:
    """The device: its name, multiprocessors, and the bytes per second that it reads from its memory."""

    def __init__(self) -> None:
        set_kernel_cache()
        self.device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.device)
        self.name, self.multiprocessors = properties.name, properties.multi_processor_count
        self.known_linears = use_tables(self.name)
        self.read_bytes_per_s = read_bytes_per_s()

    def tune(self, spec: ModelSpec, most_rows: int) -> Iterator[Outcome]:
        """Yield the outcome of each linear of a model at each number of rows up to `most_rows`."""
        with torch.inference_mode():
            for linear in linears_of(spec):
                yield from self._tune(linear, most_rows)
                torch.cuda.empty_cache()

    def _tune(self, linear: Linear, most_rows: int) -> Iterator[Outcome]:
        weights, has_gluon = weights_of(linear), is_hopper(self.device)
        timers = [LinearTimer(linear, rows, weights) for rows in sizes(most_rows)]

        def run_all() -> None:
            for timer in timers:
                for tile in {timer.today(), None, *tiles_for(linear, timer.rows, has_gluon)}:
                    timer.run(tile)

        compile_ahead(run_all, lambda: None)
        for timer in timers:
            yield tune_linear(timer, tiles_for(linear, timer.rows, has_gluon))
