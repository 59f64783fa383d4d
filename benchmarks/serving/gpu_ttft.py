"""Time to the first token of one request alone, prefix cache off, as a client of the real processes sees it.

python -m benchmarks.serving.gpu_ttft [MODEL ...] [--prompts 128 512 1024 4096 16384] [--json FILE]
"""

import argparse
import sys

from benchmarks.model_configs import MODELS
from benchmarks.serving.gpu_launch import add_arguments, parse_settings, report_launches, run_launch


def main() -> int:
    """Run each prompt length for each model and print the launches."""
    parser = argparse.ArgumentParser(description="time to the first token")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--prompts", type=int, nargs="*", default=[128, 256, 512, 1024, 4096, 16384])
    add_arguments(parser)
    options = parser.parse_args()
    workloads = [{"kind": "ttft", "prompt": prompt} for prompt in options.prompts]
    settings = {"scheduler.chunked_prefill_size": 16384, **parse_settings(options.set)}
    return report_launches([run_launch(model, workloads, settings) for model in options.models], options.json)


if __name__ == "__main__":
    sys.exit(main())
