"""Requests that share long prefixes, with the prefix cache on, as a client of the real processes sees them.

    python -m benchmarks.serving.gpu_shared_prefix [MODEL ...] [--groups 10 1] [--passes 3] [--json FILE]

100 greedy requests at once, in groups that share 2,048 prompt tokens; each request has 128 prompt tokens of its own and
128 of output. Each pass draws new ids, so that it finds no prefix of the pass before. The hit rate is the share of all
prompt tokens that came from the cache; at best it is 0.847 for 10 groups and 0.932 for one.
"""

import argparse
import sys

from benchmarks.model_configs import MODELS
from benchmarks.serving.gpu_launch import add_arguments, parse_settings, report_launches, run_launch


def main() -> int:
    """Run each number of groups for each model and print the launches."""
    parser = argparse.ArgumentParser(description="shared prefixes")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--groups", type=int, nargs="*", default=[10, 1])
    parser.add_argument("--passes", type=int, default=3)
    add_arguments(parser)
    options = parser.parse_args()
    workloads = [{"kind": "shared_prefix", "groups": groups, "passes": options.passes} for groups in options.groups]
    settings = {"scheduler.disable_radix_cache": False, **parse_settings(options.set)}
    return report_launches([run_launch(model, workloads, settings) for model in options.models], options.json)


if __name__ == "__main__":
    sys.exit(main())
