"""Measures the steps of a model on this machine, through the worker's runner, and fits the simulator's step cost.

    OMP_NUM_THREADS=1 python -m benchmarks.simulation.fit_step_cost OUT.jsonl [serve flags ...]

Writes one measured step a line (the least of several runs, in seconds) and prints the coefficients and the residuals.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from quartet.checkpoint.resolve import resolve_model
from quartet.cli.options import OneLineParser, add_options
from quartet.settings import build_config
from quartet.wire.config import Config
from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, pack_ids
from quartet.wire.ids import Epoch
from scheduler_proc.core.step_cost import MeasuredStep, fit_steps, pairs, residuals
from worker_proc.contract import Runner
from worker_proc.loading import load_runner

GREEDY = SamplingParams(temperature=0.0)
EPOCH = Epoch(0)
POOL_TOKENS = 40_960
REPEATS = 6
"""Passes over all steps; the least time of each counts, because other load only adds to it."""
PREFILLS = ((0, 16), (0, 64), (0, 128), (0, 256), (0, 512), (512, 64), (512, 512), (1536, 64), (1536, 512))
DECODES = ((1, 64), (1, 1024), (2, 256), (4, 256), (8, 64), (8, 256), (8, 1024), (16, 256), (16, 1024), (32, 64))
MIXED = ((0, 128, 8, 256), (512, 256, 16, 256))


class Bench:
    """Runs steps on a runner and assigns its slots and pages."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._page_size = runner.capacity.page_size
        self._step = 1

    def _run(self, enter: list[Enter], chunks: list[Chunk], decode: bool) -> float:
        step = Step(EPOCH, self._step, b"", enter, b"", chunks, decode)
        self._step += 1
        started = time.perf_counter()
        self._runner.launch(step, EPOCH).wait()
        return time.perf_counter() - started

    def measure(self, start: int, length: int, rows: int, context: int) -> MeasuredStep:
        """Return a step that prefills `length` tokens from `start` on beside `rows` decode rows of `context` tokens."""
        self._runner.reset()
        pages = iter(range(1, self._runner.capacity.page_count + 1))
        for slot in range(rows):
            self._fill(slot, context, pages)
        enters, chunks = [], []
        if start:
            self._fill(rows, start + length, pages, start)
        elif length:
            enters = [self._enter(rows, length, length, pages)]
        if length:
            chunks = [Chunk(rows, length, True)]
        seconds = self._run(enters, chunks, rows > 0)
        work = (length, pairs(start, length), rows, rows * (context + 1))
        return MeasuredStep(*work, seconds=seconds, note=f"prefill {start}+{length}, decode {rows} x {context}")

    def _enter(self, slot: int, length: int, room: int, pages: Iterator[int], cached: int = 0) -> Enter:
        count = -(-(room + 2) // self._page_size)
        ids = [11 + at % 1000 for at in range(length)]
        granted = [next(pages) for _ in range(count)]
        return Enter(slot, slot, pack_ids(ids), length, cached, pack_ids(granted), GREEDY, 0)

    def _fill(self, slot: int, length: int, pages: Iterator[int], upto: int | None = None) -> None:
        """Put a sequence into a slot of which the first `upto` tokens, default all, are computed.

        All of them but the last count as cached: what stands in their KV changes no step's time.
        """
        upto = length if upto is None else upto
        enter = self._enter(slot, length, length, pages, upto - 1)
        self._run([enter], [Chunk(slot, 1, upto == length)], False)


def main(arguments: list[str]) -> int:
    """Measure, write, fit and print."""
    out, flags = Path(arguments[0]), arguments[1:]
    parser = OneLineParser(prog="fit_step_cost")
    add_options(parser)
    config = build_config(vars(parser.parse_args(["--max-total-tokens", str(POOL_TOKENS), *flags])))
    config = msgspec.structs.replace(config, resolved=resolve_model(config.model))
    bench = prepare(config)
    grid = [(*prefill, 0, 0) for prefill in PREFILLS] + [(0, 0, *decode) for decode in DECODES] + list(MIXED)
    passes = [[bench.measure(*point) for point in grid] for _ in range(REPEATS)]
    steps = [min(found, key=lambda step: step.seconds) for found in zip(*passes, strict=True)]
    out.write_bytes(b"".join(msgspec.json.encode(step) + b"\n" for step in steps))
    cost = fit_steps(steps)
    print(json.dumps(msgspec.to_builtins(cost)))
    for step, error in residuals(cost, steps):
        print(f"{step.seconds * 1e3:9.2f} ms {error:+7.1%}  {step.note}")
    return 0


def prepare(config: Config) -> Bench:
    """Return a bench on a loaded and warmed-up runner."""
    runner = load_runner(config, lambda: None)
    runner.allocate(runner.capacity.page_count)
    return Bench(runner)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
