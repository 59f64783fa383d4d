"""Throughput on nano-vllm's workload, through the real processes, detokenisation included.

    python -m benchmarks.serving.gpu_nano [MODEL ...] [--passes 2] [--set SECTION.FIELD=VALUE] [--json FILE]
    python -m benchmarks.serving.gpu_nano [MODEL ...] --http [--clients 4] ...

256 sequences, prompts and outputs of 100 to 1,024 tokens drawn with seed 0, temperature 0.6. In the first form the
client takes the place of the api process, and the tokenizer has text for 512 ids only. In the second form several
client processes stream from the api process over HTTP, and the tokenizer has text for every id.
"""

import argparse
import sys
from typing import Any

from benchmarks.model_configs import MODELS
from benchmarks.serving.gpu_http import run_http_launch
from benchmarks.serving.gpu_launch import add_arguments, parse_settings, report_launches, run_launch


def main() -> int:
    """Run the passes for each model and print the launches."""
    parser = argparse.ArgumentParser(description="nano-vllm's workload")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--http", action="store_true", help="stream over HTTP from the real api process")
    parser.add_argument("--clients", type=int, default=4, help="client processes of --http")
    add_arguments(parser)
    options = parser.parse_args()
    settings = parse_settings(options.set)

    def launch(model: str) -> dict[str, Any]:
        if options.http:
            return run_http_launch(model, options.passes, options.clients, settings)
        return run_launch(model, [{"kind": "nano", "passes": options.passes}], settings)

    return report_launches([launch(model) for model in options.models], options.json)


if __name__ == "__main__":
    sys.exit(main())
