"""Time of a decode step by batch size, as a client of the real processes sees it.

    python -m benchmarks.serving.gpu_decode_step [MODEL ...] [--batches 1 8 32 64 128 256] [--json FILE]

Prompts of 960 tokens and 160 more, greedy: contexts of 960 to 1,120; steps without prefill only.
"""

import argparse
import sys

from benchmarks.model_configs import MODELS
from benchmarks.serving.gpu_launch import add_arguments, parse_settings, report_launches, run_launch


def main() -> int:
    """Run each batch size for each model and print the launches."""
    parser = argparse.ArgumentParser(description="decode steps")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 64, 128, 256])
    add_arguments(parser)
    options = parser.parse_args()
    workloads = [{"kind": "decode", "batch": batch} for batch in options.batches]
    settings = parse_settings(options.set)
    return report_launches([run_launch(model, workloads, settings) for model in options.models], options.json)


if __name__ == "__main__":
    sys.exit(main())
