"""Seconds from SIGKILL of a process to the next token of every stream, with and without a standby worker.

    python -m benchmarks.serving.gpu_recovery MODEL [...] [--standby] [--kills 3] [--victim worker-0]
        [--streams 32] [--prompt 128] [--output 400] [--set SECTION.FIELD=VALUE] [--json FILE]

Real processes on a model with random weights. Each kill finds all streams decoding; the next one comes when every
process, the standby included, is ready again. `restarted_s` is when a successor was there, after the dead process was
reaped; `ready_s` when it was ready; then the pause of the first, median and last stream. `same_streams` counts those
whose ids are those of a run without a kill: in bf16 another batch may round otherwise. `start_up_s` has the phases of
the last successor, `memory_mib` the device memory in use before the first kill.
"""

import argparse
import sys

from benchmarks.model_configs import MODELS
from benchmarks.serving.gpu_launch import add_arguments, parse_settings, report_launches, run_launch


def main() -> int:
    """Launch each model, kill, and print the launches, and a line for each kill on standard error."""
    parser = argparse.ArgumentParser(description="seconds from a kill to the next token")
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--standby", action="store_true")
    parser.add_argument("--victim", default="worker-0")
    for name, default in (("kills", 3), ("streams", 32), ("prompt", 128), ("output", 400)):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_arguments(parser)
    options = parser.parse_args()
    settings = {"server.standby": options.standby, **parse_settings(options.set)}
    fields = ("victim", "kills", "streams", "prompt", "output")
    workload = {"kind": "recovery", **{name: getattr(options, name) for name in fields}}
    launches = [run_launch(model, [workload], settings) for model in options.models]
    status = report_launches(launches, options.json)
    for launch in launches:
        how = "with a standby" if options.standby else "without a standby"
        print(f"{launch['model']} {how}; last start-up, s: {launch.get('start_up_s')}", file=sys.stderr)
        for result in launch["results"]:
            print("    device memory, MiB:", result["memory_mib"], file=sys.stderr)
            for kill in result["kills_found"]:
                print("   ", kill, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
