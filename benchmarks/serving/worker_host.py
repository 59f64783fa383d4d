"""What a decode step costs the worker's host, without a device: processor time of the executor's thread a step.

    python -m benchmarks.serving.worker_host [--rows 1 32 256] [--sleep-ms 0 12] [--steps 200] [--json FILE]

A runner of a tiny model whose CUDA graphs are replaced by a few stores: what is left is what Python and numpy do in a
launch and a wait. Between two steps it sleeps as long as a step would take, since a processor that has just been woken
is slower, or not at all. The least of 5 rounds, because the rest of the machine only adds.
"""

import argparse
import sys
import time
from typing import Any

from tests.support.interpreted import interpret_kernels

interpret_kernels()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.serving.gpu_launch import describe_host, report  # noqa: E402
from benchmarks.serving.gpu_step_profile import STEPS, Batch  # noqa: E402
from tests.golden.oracles import FOLDER  # noqa: E402
from tests.support.local_engine import make_config  # noqa: E402
from worker_proc.loading import load_runner  # noqa: E402
from worker_proc.runner import ModelRunner  # noqa: E402

CONTEXT, PAGE_SIZE = 17, 16
# As much as Batch gives each row.
PAGES_A_ROW = -(-(CONTEXT + 4 * STEPS) // PAGE_SIZE)
ROUNDS, PROMPTS_A_STEP = 5, 8
MOST_ROWS = 256


class Graph:
    """In the place of a CUDA graph: takes the letter's turn and writes every id."""

    def __init__(self, mail: Any) -> None:
        self._mail = mail
        self._turn, self._posts = mail.turn.numpy(), mail.posts.numpy()

    def replay(self) -> None:
        """Answer the letter that was written last."""
        self._turn += 1
        self._posts[self._turn[0] % len(self._posts)] = 7


def make_runner() -> ModelRunner:
    """Return a runner whose loops have no device."""
    folder = FOLDER / "models"
    worker = {
        "attention_backend": "triton",
        "page_size": PAGE_SIZE,
        "max_total_tokens": MOST_ROWS * PAGES_A_ROW * PAGE_SIZE,
        "cuda_graph_max_bs": MOST_ROWS,
    }
    config = make_config(
        folder / "llama", tokenizer=folder / "qwen3", scheduler={"max_running_requests": MOST_ROWS}, **worker
    )
    runner = load_runner(config, lambda: None)
    runner.allocate(runner.capacity.page_count)
    for loop in (runner._decode_loop, runner._prompt_loop):
        assert loop is not None
        with torch.inference_mode():
            loop._mail.restart()
        loop._graphs = dict.fromkeys(loop._sizes, Graph(loop._mail))  # type: ignore[assignment]
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
