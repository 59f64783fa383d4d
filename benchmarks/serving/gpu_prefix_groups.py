"""Decode steps of rows that share prefixes, with and without groups, by the runner alone in this process.

    python -m benchmarks.serving.gpu_prefix_groups [MODEL ...] [--rows 100] [--shared 2048] [--own 192] [--json FILE]

Prints for each number of groups the wall time of a step in ms, with and without groups in turn, and the host's time in
a launch; 0 groups are rows that share nothing.
"""

import argparse
import sys
from typing import Any

import torch

from benchmarks.model_configs import MODELS
from benchmarks.report import describe_host, report
from benchmarks.serving.gpu_launch import add_arguments, make_config, parse_settings
from benchmarks.serving.gpu_step_profile import STEPS, Batch
from worker_proc.loading import load_runner
from worker_proc.runner import ModelRunner

PASSES = 3


def measure(runner: ModelRunner, rows: int, shared: int, own: int, groups: int) -> dict[str, Any]:
    """Time steps of one batch, with groups and without them in turn."""
    batch = Batch(runner, rows, shared + own, 0.0, 16, shared if groups else 0, max(1, groups))
    graphs = runner._decode_graphs
    assert graphs is not None
    finder, found = graphs._groups, dict[str, list[float]]()
    for _ in range(PASSES):
        for name, used in (("grouped", finder), ("ungrouped", None)):
            graphs._groups = used
            times = batch.run(STEPS // PASSES)
            found.setdefault(f"{name}_ms", []).append(round(times["step_us"] / 1e3, 3))
            found.setdefault(f"{name}_launch_us", []).append(times["launch_us"])
    graphs._groups = finder
    runner.reset()
    return {"rows": rows, "shared": shared, "own": own, "groups": groups, **found}


def main() -> int:
    """Measure each model and print one JSON object."""
    parser = argparse.ArgumentParser(description="steps of rows that share prefixes")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rows", type=int, nargs="*", default=[100])
    parser.add_argument("--shared", type=int, default=2048)
    parser.add_argument("--own", type=int, default=192)
    parser.add_argument("--groups", type=int, nargs="*", default=[0, 1, 10, 50])
    add_arguments(parser)
    options = parser.parse_args()
    results = []
    for model in options.models:
        runner = load_runner(make_config(model, parse_settings(options.set)), lambda: None)
        runner.allocate(runner.capacity.page_count)
        with torch.inference_mode():
            for cache in runner._caches:
                assert isinstance(cache, torch.Tensor)
                cache.normal_()
        for rows in options.rows:
            for groups in options.groups:
                one = {"model": model, **measure(runner, rows, options.shared, options.own, groups)}
                print(one, file=sys.stderr, flush=True)
                results.append(one)
        del runner
        torch.cuda.empty_cache()
    report({**describe_host(), "results": results}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
