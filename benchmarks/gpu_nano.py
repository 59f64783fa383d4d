"""Offline throughput on nano-vllm's workload, through the real processes, detokenisation included.

    python -m benchmarks.gpu_nano [MODEL ...] [--passes 2] [--set SECTION.FIELD=VALUE] [--json FILE]

256 sequences, prompts and outputs of 100 to 1,024 tokens drawn with seed 0, temperature 0.6.
"""

import argparse
import sys

from benchmarks.gpu_launch import MODELS, add_arguments, parse_settings, report, run_launch


def main() -> int:
    """Run the passes for each model and print one JSON list."""
    parser = argparse.ArgumentParser(description="nano-vllm's workload")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--passes", type=int, default=2)
    add_arguments(parser)
    options = parser.parse_args()
    workloads = [{"kind": "nano", "passes": options.passes}]
    settings = parse_settings(options.set)
    report([run_launch(model, workloads, settings) for model in options.models], options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
