"""quartet bench: measures a server or the offline engine, and compares results."""

import argparse
from typing import NoReturn

from quartet.cli import bench_compare, bench_offline, bench_serve
from quartet.cli.options import OneLineParser

KINDS = {
    "serve": ("measure a running server, of any engine with OpenAI's API", bench_serve),
    "offline": ("measure the engine in this process, without a server", bench_offline),
    "compare": ("compare two results", bench_compare),
}


class _Parser(OneLineParser):
    """Refuses what it does not know itself: the parser above would name the flags of another command."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        found, unknown = super().parse_known_args(args, namespace)
        return (found, unknown) if not unknown else self._refuse(unknown)

    def _refuse(self, unknown: list[str]) -> NoReturn:
        self.error(f"unrecognized arguments: {unknown[0]}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a command for each kind of measurement."""
    kinds = parser.add_subparsers(dest="bench", required=True, parser_class=_Parser, metavar="KIND")
    for name, (purpose, module) in KINDS.items():
        one = kinds.add_parser(
            name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", allow_abbrev=False
        )
        module.add_arguments(one)


def run(arguments: argparse.Namespace) -> int:
    """Run one measurement; returns the exit code."""
    return int(KINDS[arguments.bench][1].run(arguments))
