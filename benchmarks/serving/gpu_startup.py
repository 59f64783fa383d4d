"""Seconds from the launch of the real processes until they accept requests, with a cold and with a warm kernel cache.

    python -m benchmarks.serving.gpu_startup MODEL [...] [--warm 2] [--set SECTION.FIELD=VALUE] [--json FILE]

The first launch of each model has an empty TRITON_CACHE_DIR; later ones reuse what it compiled. So it is with the
bytecode of Python modules, which pip writes and the image of a machine may lack: torch takes twice as long to import
without. A few small rounds follow, so that a kernel compiled only then shows in compiles_after_ready. Weights are
random, so nothing is read from disk. The result has the seconds of each phase of the worker as well.
"""

import argparse
import sys
import tempfile
from typing import Any

from benchmarks.model_configs import MODELS
from benchmarks.serving.gpu_launch import add_arguments, parse_settings, report_launches, run_launch

WORKLOADS: list[dict[str, Any]] = [
    {"kind": "ttft", "prompt": 100, "repeats": 2},
    {"kind": "ttft", "prompt": 1000, "repeats": 2},
    {"kind": "decode", "batch": 3, "prompt": 200, "output": 24},
    {"kind": "decode", "batch": 40, "prompt": 100, "output": 24},
]


def start_repeatedly(model: str, warm: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one launch with an empty kernel cache and `warm` launches that reuse that cache."""
    launches = []
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TRITON_CACHE_DIR": f"{folder}/kernels", "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        for number in range(1 + warm):
            launch = run_launch(model, WORKLOADS, settings, {**caches, "PYTHONDONTWRITEBYTECODE": ""})
            launches.append({"kernel_cache": "warm" if number else "cold", **launch})
    return launches


def main() -> int:
    """Start each model repeatedly; print the launches, and one line for each on standard error."""
    parser = argparse.ArgumentParser(description="seconds until ready")
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--warm", type=int, default=2)
    add_arguments(parser)
    options = parser.parse_args()
    settings = parse_settings(options.set)
    launches = [launch for model in options.models for launch in start_repeatedly(model, options.warm, settings)]
    status = report_launches(launches, options.json)
    for launch in launches:
        facts = (launch["model"], launch["kernel_cache"], launch.get("ready_s"), launch.get("compiles_after_ready"))
        print("{} {}: ready after {} s, {} compilations after that".format(*facts), file=sys.stderr)
        print("    of it in the worker, s:", launch.get("start_up_s"), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
