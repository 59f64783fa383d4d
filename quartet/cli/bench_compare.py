"""quartet bench compare: two results side by side."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two sides."""
    text = "a file of results, one JSON object a line (of this command, vLLM or SGLang), or a folder of such files"
    parser.add_argument("first", metavar="A", help=text)
    parser.add_argument("second", metavar="B", help="the same")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")


def run(arguments: argparse.Namespace) -> int:
    """Print the differences; returns the exit code. Raises ConfigError."""
    from quartet.bench.compare import compare, print_comparison, read_runs

    rows = compare(read_runs(Path(arguments.first)), read_runs(Path(arguments.second)))
    if arguments.json:
        print("\n".join(json.dumps(row._asdict()) for row in rows))
    else:
        print_comparison(rows, Path(arguments.first).stem, Path(arguments.second).stem)
    return 0
