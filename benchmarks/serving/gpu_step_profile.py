"""Where the time of a decode step goes: the runner alone in this process, two steps in flight, its kernels by name.

    python -m benchmarks.serving.gpu_step_profile [MODEL ...] [--batches 1 8 ...] [--context 1024] [--json FILE]

Prints for each batch: wall time of a step, host time of a launch and of a wait, busy time of the GPU, and the longest
kernels.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from benchmarks.model_configs import MODELS
from benchmarks.report import describe_host, report
from benchmarks.serving.gpu_launch import add_arguments, make_config, parse_settings
from quartet.wire.frames import Chunk, Enter, SamplingParams, Step, pack_ids
from quartet.wire.ids import Epoch
from worker_proc.loading import load_runner
from worker_proc.runner import ModelRunner

EPOCH = Epoch(0)
STEPS = 60
PROMPTS = (128, 512, 1024, 8192)
ALL = 1 << 30


class Batch:
    """A batch in decode with contexts of one length, without a scheduler. Prompts run `prompts_a_step` at a time. With
    `groups`, the rows of each share the first `shared` tokens."""

    def __init__(
        self,
        runner: ModelRunner,
        rows: int,
        context: int,
        temperature: float,
        prompts_a_step: int = ALL,
        shared: int = 0,
        groups: int = 1,
    ) -> None:
        self._runner, self._number = runner, 0
        page_size = runner.capacity.page_size
        pages_each = -(-(context + 4 * STEPS) // page_size)
        vocab_size = min(1000, runner.capacity.vocab_size)
        enters, chunks = [], []
        for slot in range(rows):
            first = 1 + (slot * pages_each) % max(1, runner.capacity.page_count - pages_each)
            pages = list(range(first, first + pages_each))
            of_group = 1 + slot % groups * pages_each
            pages[: shared // page_size] = range(of_group, of_group + shared // page_size)
            params = SamplingParams(temperature=temperature, seed=slot, ignore_eos=True)
            ids = pack_ids([(slot + at) % vocab_size for at in range(context)])
            enters.append(Enter(slot, 1, ids, context, context - 1, pack_ids(pages), params, 0))
            chunks.append(Chunk(slot, 1, True))
        for at in range(0, rows, prompts_a_step):
            some = slice(at, at + prompts_a_step)
            self._launch(enters[some], chunks[some], decode=False).wait()

    def launch(self) -> Any:
        """Launch a decode step of all rows and return it."""
        return self._launch([], [], decode=True)

    def _launch(self, enters: list[Enter], chunks: list[Chunk], decode: bool) -> Any:
        self._number += 1
        return self._runner.launch(Step(EPOCH, self._number, b"", enters, b"", chunks, decode), EPOCH)

    def run(self, steps: int) -> dict[str, float]:
        """Return medians in microseconds: of a step, and of the host's time in a launch, in its parts and in a wait.

        `cpu_us` is the mean processor time of this thread for a step.
        """
        ends, launches, waits, prepares, forwards = [], [], [], [], []
        before = self.launch()
        cpu = time.thread_time()
        for _ in range(steps):
            started = time.perf_counter()
            following = self.launch()
            launched = time.perf_counter()
            times = before.wait().times
            prepares.append(times.prepare_s)
            forwards.append(times.forward_s)
            ends.append(time.perf_counter())
            launches.append(launched - started)
            waits.append(ends[-1] - launched)
            before = following
        cpu_us = 1e6 * (time.thread_time() - cpu) / steps
        before.wait()
        gaps = [later - earlier for earlier, later in pairwise(ends)]
        found = {"step": gaps, "launch": launches, "prepare": prepares, "forward": forwards, "wait": waits}
        medians = {f"{name}_us": round(1e6 * statistics.median(values), 1) for name, values in found.items()}
        return {**medians, "cpu_us": round(cpu_us, 1)}


def profiled(run: Callable[[], Any], steps: int) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Return kernel name -> (microseconds a step, calls a step), the sum of kernel times, and the median idle time.

    The device is idle between the last kernel of a step and the first of the next. All are microseconds a step.
    A kernel that starts before the kernel ahead of it ends counts the time that it waits.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    idle, ended = [], 0.0
    for event in sorted(events, key=lambda event: event.time_range.start):
        totals[event.name][0] += event.device_time
        totals[event.name][1] += 1
        if event.name.startswith("_unpack_decode_descriptor") and ended:
            idle.append(max(0.0, event.time_range.start - ended))
        ended = max(ended, event.time_range.end)
    found = {name: (us / steps, calls / steps) for name, (us, calls) in totals.items()}
    return found, sum(us for us, _ in found.values()), statistics.median(idle) if idle else 0.0


def prompt_us(runner: ModelRunner, length: int) -> dict[str, Any]:
    """Return the wall time of a prompt of `length` tokens, the host's time in its launch, and its kernels."""
    pages = pack_ids(list(range(1, 2 - (-length // runner.capacity.page_size))))
    enter = Enter(0, 1, pack_ids([at % 1000 for at in range(length)]), length, 0, pages, SamplingParams(), 0)
    prompt = Step(EPOCH, 1, b"", [enter], b"", [Chunk(0, length, True)], False)
    release = Step(EPOCH, 2, pack_ids([0]), [], b"", [], False)
    walls, launches = [], []

    def once() -> None:
        started = time.perf_counter()
        pending = runner.launch(prompt, EPOCH)
        launches.append(time.perf_counter() - started)
        pending.wait()
        walls.append(time.perf_counter() - started)
        runner.launch(release, EPOCH).wait()

    for _ in range(5):
        once()
    found = {"wall_us": statistics.median(walls), "launch_us": statistics.median(launches)}
    kernels = profiled(once, 1)[0]
    top = sorted(kernels.items(), key=lambda item: -item[1][0])[:8]
    busy = sum(us for us, _ in kernels.values())
    table = {name[:60]: (round(us, 1), calls) for name, (us, calls) in top}
    return {**{name: round(1e6 * value) for name, value in found.items()}, "busy_us": round(busy), "kernels": table}


def measure(model: str, batches: list[int], context: int, settings: dict[str, Any], temperature: float) -> Any:
    """Return one result for each batch."""
    started = time.perf_counter()
    runner = load_runner(make_config(model, settings), lambda: None)
    loaded = time.perf_counter()
    runner.allocate(runner.capacity.page_count)
    warm = time.perf_counter()
    with torch.inference_mode():
        for cache in runner._caches:
            for kept in (cache,) if isinstance(cache, torch.Tensor) else (cache.window, cache.matrix):
                kept.normal_()
    results = []
    for rows in batches:
        batch = Batch(runner, rows, context, temperature)
        batch.run(10)
        medians = batch.run(STEPS)
        kernels, busy_us, idle_us = profiled(lambda batch=batch: batch.run(10), 11)
        top = sorted(kernels.items(), key=lambda item: -item[1][0])[:16]
        results.append(
            {
                "batch": rows,
                **medians,
                "busy_us": round(busy_us, 1),
                "idle_us": round(idle_us, 2),
                "kernels": {name[:70]: (round(us, 1), round(calls, 1)) for name, (us, calls) in top},
            }
        )
        runner.reset()
    prompts = {length: prompt_us(runner, length) for length in PROMPTS}
    seconds = {"load_s": round(loaded - started, 2), "warm_up_s": round(warm - loaded, 2)}
    return {"model": model, "context": context, **seconds, **runner.facts(), "prompt_us": prompts, "results": results}


def main() -> int:
    """Measure each model and print one JSON object."""
    parser = argparse.ArgumentParser(description="where the time of a decode step goes")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0)
    add_arguments(parser)
    options = parser.parse_args()
    settings = parse_settings(options.set)
    found = []
    for model in options.models:
        found.append(measure(model, options.batches, options.context, settings, options.temperature))
        torch.cuda.empty_cache()
    report({**describe_host(), "settings": settings, "models": found}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
