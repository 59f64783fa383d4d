"""quartet config: the settings that `quartet serve` would have with the same flags, and where each comes from."""

import argparse
import json
from typing import Any

from quartet.cli.serve import add_launch_arguments, configuration_of
from quartet.cli.settings_table import DEFAULT, setting_rows, table
from quartet.settings import RARE, SETTINGS, bare_type, variables_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `quartet serve` takes, and how much to show."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--all", "--list", action="store_true", help="show the rare settings of scheduling, too")
    add_launch_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the settings, those that are changed first; returns the exit code. Raises ConfigError."""
    configuration = configuration_of(arguments)
    rows = setting_rows(configuration)
    if arguments.json:
        print(json.dumps({"settings": [_described(row) for row in rows]}))
        return 0
    shown = [row for row in rows if arguments.all or row["origin"] != DEFAULT or row["name"] not in RARE]
    print("\n".join(table(shown)))
    return 0


def _described(row: dict[str, Any]) -> dict[str, Any]:
    _, description = bare_type(SETTINGS[row["name"]].type)
    return {**row, "description": description, "variables": variables_of(row["name"])}
