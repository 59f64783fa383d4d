"""--deterministic: whether the same requests get the same bytes in every company, and what that costs.

    python -m benchmarks.serving.deterministic [MODEL] [--requests 64] [--prompt 512] [--output 48] [--kills 2]
        [--passes 2] [--cost-model NAME] [--streams N] [--set SECTION.FIELD=VALUE] [--json FILE]

MODEL is one of benchmarks/models (random weights, on a GPU in bfloat16) or a folder. Real processes run the requests
one by one, together, together again, and together while the worker is killed; in launches with a prefix cache, without,
with small chunks in mixed steps, without graphs, and with retractions. Each answer, ids and bits of log-probabilities,
is compared with the one of the first launch alone. A launch without --deterministic shows how many differ there.

The cost is that of the offline engine, with --deterministic and without in turn, `--passes` times each, 0 for none:
nano-vllm's requests, or `--streams` of 32 + 64 tokens; by wall time, and by processor time, which is for a CPU.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from benchmarks.model_configs import MODELS, ROOT
from benchmarks.report import describe_host, report
from benchmarks.serving.gpu_launch import add_arguments, parse_settings, run_launch

ON: dict[str, Any] = {"worker.deterministic": True}
LAUNCHES: dict[str, dict[str, Any]] = {
    "prefix cache": {**ON, "scheduler.disable_radix_cache": False},
    "no prefix cache": {**ON},
    "chunks in mixed steps": {**ON, "scheduler.chunked_prefill_size": 128, "scheduler.enable_mixed_chunk": True},
    "no graphs": {**ON, "worker.disable_cuda_graph": True, "scheduler.disable_radix_cache": False},
    "retractions": {**ON, "scheduler.test_retract": True, "scheduler.disable_radix_cache": False},
    "without --deterministic": {"scheduler.disable_radix_cache": False},
}


def run_bytes(model: str, workload: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Run every launch; return by launch and way how many answers differ from the first launch alone."""
    expected: list[str] = []
    found: dict[str, Any] = {}
    for name, own in LAUNCHES.items():
        launch = run_launch(model, [workload], {**settings, **own})
        if "error" in launch:
            raise RuntimeError(f"{name}: {launch['error']}")
        digests = launch["results"][0]["digests"]
        if name.startswith("without"):
            expected = digests["alone"]
        expected = expected or digests["alone"]
        pairs = {way: zip(one, expected, strict=True) for way, one in digests.items()}
        found[name] = {way: sum(one != other for one, other in both) for way, both in pairs.items()}
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def run_cost(model: str, passes: int, streams: int, settings: list[str]) -> dict[str, list[dict[str, float]]]:
    """Return tokens a second and processor seconds of each pass, with --deterministic and without in turn."""
    found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    load = ["--streams", str(streams)] if streams else ["--nano"]
    for _ in range(passes):
        for name in found:
            pairs = [*settings, f"worker.deterministic={json.dumps(name == 'with')}"]
            command = [sys.executable, "-m", "benchmarks.serving.offline", model, *load, "--one-pass"]
            command += [part for pair in pairs for part in ("--set", pair)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Compare and measure; returns 1 if an answer with --deterministic differs."""
    parser = argparse.ArgumentParser(description="the same bytes in every company, and their cost")
    parser.add_argument("model", nargs="?", default="llama-3.1-8b")
    parser.add_argument("--cost-model", choices=("smollm2", *MODELS), default="llama-3.1-8b")
    for name, default in (
        ("requests", 64),
        ("prompt", 512),
        ("output", 48),
        ("kills", 2),
        ("passes", 2),
        ("streams", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_arguments(parser)
    options = parser.parse_args()
    fields = ("requests", "prompt", "output", "kills")
    workload = {"kind": "same_bytes", **{name: getattr(options, name) for name in fields}}
    differing = run_bytes(options.model, workload, parse_settings(options.set)) if options.requests else {}
    cost = run_cost(options.cost_model, options.passes, options.streams, options.set)
    report({**describe_host(), "workload": workload, "differing": differing, "cost": cost}, options.json)
    kept = [sum(ways.values()) for name, ways in differing.items() if not name.startswith("without")]
    return int(any(kept))


if __name__ == "__main__":
    sys.exit(main())
