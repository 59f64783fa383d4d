"""What a decode step costs the host of the worker, without a device: processor time of the executor's thread a step.

    python -m benchmarks.serving.worker_host [--rows 1 32 256] [--sleep-ms 0 12] [--steps 200] [--json FILE]

The runner has a tiny model, and a few stores replace its CUDA graphs, so the time is that of Python and numpy in a
launch and a wait. Between two steps the thread sleeps as long as a step on a device takes, because a processor that
wakes up is slower, or not at all. The result is the least of 5 rounds, because other load only adds to it.
"""

import argparse
import os
import sys
import time
from typing import Any

# Without a device Triton takes its interpreter; it settles that when it is imported.
os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from benchmarks.model_configs import TINY_MODELS
from benchmarks.report import describe_host, report
from benchmarks.serving.gpu_launch import make_config
from benchmarks.serving.gpu_step_profile import STEPS, Batch
from worker_proc.loading import load_runner
from worker_proc.runner import ModelRunner

CONTEXT, PAGE_SIZE = 17, 16
# As many as Batch gives each row.
PAGES_A_ROW = -(-(CONTEXT + 4 * STEPS) // PAGE_SIZE)
ROUNDS, PROMPTS_A_STEP = 5, 8
MOST_ROWS = 256


class Graph:
    """Stands in for a CUDA graph: advances the sequence number and writes every id."""

    def __init__(self, rings: Any) -> None:
        self._rings = rings
        self._sequence, self._outputs = rings.sequence.numpy(), rings.outputs.numpy()

    def replay(self) -> None:
        """Answer the step descriptor that was written last."""
        self._sequence += 1
        self._outputs[self._sequence[0] % len(self._outputs)] = 7


def make_runner() -> ModelRunner:
    """Return a runner whose loops have no device."""
    settings = {
        "model.dtype": "float32",
        "model.context_length": 0,
        "scheduler.max_running_requests": MOST_ROWS,
        "worker.device": "cpu",
        "worker.attention_backend": "triton",
        "worker.page_size": PAGE_SIZE,
        "worker.max_total_tokens": MOST_ROWS * PAGES_A_ROW * PAGE_SIZE,
        "worker.cuda_graph_max_bs": MOST_ROWS,
    }
    runner = load_runner(make_config(str(TINY_MODELS / "llama"), settings), lambda: None)
    runner.allocate(runner.capacity.page_count)
    for loop in (runner._decode_graphs, runner._prefill_graphs):
        assert loop is not None
        with torch.inference_mode():
            loop._rings.restart()
        loop._graphs._pool = (0, 0)  # type: ignore[assignment]
        loop._graphs._graphs = dict.fromkeys(loop._sizes, Graph(loop._rings))  # type: ignore[arg-type]
    return runner


def measure(runner: ModelRunner, rows: int, sleep_s: float, steps: int) -> float:
    """Return microseconds of processor time a step."""
    found = []
    for _ in range(ROUNDS):
        runner.reset()
        batch = Batch(runner, rows, CONTEXT, 0.0, PROMPTS_A_STEP)
        pending, spent = batch.launch(), 0.0
        for _ in range(steps):
            if sleep_s:
                time.sleep(sleep_s)
            before = time.thread_time()
            following = batch.launch()
            pending.wait()
            spent += time.thread_time() - before
            pending = following
        pending.wait()
        found.append(1e6 * spent / steps)
    return round(float(np.min(found)), 1)


def main() -> int:
    """Measure each number of rows with each sleep and print one JSON object."""
    parser = argparse.ArgumentParser(description="host time of a decode step")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 32, 256])
    parser.add_argument("--sleep-ms", type=float, nargs="*", default=[0.0, 12.0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    runner = make_runner()
    results = [
        {"rows": rows, "sleep_ms": sleep_ms, "us": measure(runner, rows, sleep_ms / 1e3, options.steps)}
        for rows in options.rows
        for sleep_ms in options.sleep_ms
    ]
    report({**describe_host(), "results": results}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
