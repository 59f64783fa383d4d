"""The command line: finds the command, reads its arguments and runs it.

A command is a module of this folder with `add_arguments(parser)` and `run(arguments) -> exit code`; COMMANDS lists
them. Only the module of the command that is given is imported, so that every command starts light.
"""

import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import NamedTuple

from quartet.cli.options import OneLineParser
from quartet.runtime.failure_box import complain, show_failure
from quartet.runtime.output import STDERR, STDOUT, discard, lossy_output, open_missing
from quartet.version import __version__
from quartet.wire.errors import ConfigError, EngineError, StartError

EXIT_ENGINE = 1


class Command(NamedTuple):
    """A command by name: what it is for in one line, and its module."""

    name: str
    purpose: str
    module: str


COMMANDS = (
    Command("serve", "start the engine and its HTTP server", "quartet.cli.serve"),
    Command("check", "look at what a launch would meet, without starting it", "quartet.cli.check"),
    Command("config", "show the settings of a launch and where each comes from", "quartet.cli.config"),
    Command("chat", "talk to a running engine", "quartet.cli.chat"),
    Command("ps", "show the processes of a running engine", "quartet.cli.ps"),
    Command("why", "tell where the time of a request went, live or on a trace", "quartet.cli.why"),
    Command("top", "show load and processes of a running engine, live", "quartet.cli.top"),
    Command("bench", "measure a server or the offline engine", "quartet.cli.bench"),
    Command("tune", "measure a model's linears on this GPU, and keep what is faster", "quartet.cli.tune"),
    Command("cache", "list the converted models on disk, and remove some", "quartet.cli.cache"),
    Command("simulate", "run the scheduler on virtual time", "quartet.cli.simulate"),
    Command("advise", "find the policy for a recorded trace", "quartet.cli.advise"),
    Command("completion", "print a script for completion in a shell", "quartet.cli.completion"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["serve"]:
        with lossy_output(STDOUT, STDERR):
            return _run(given)
    open_missing()
    try:
        try:
            return _run(given)
        finally:
            sys.stdout.flush()
    except OSError as error:
        # The output was the purpose of the command.
        discard(STDOUT)
        if not isinstance(error, BrokenPipeError):
            complain(f"quartet: {error}")
        return 1


def make_parser(names: Collection[str]) -> tuple[OneLineParser, dict[str, OneLineParser]]:
    """Return the parser of the command line, and those of its commands; only `names` have their arguments."""
    parser = OneLineParser(prog="quartet", description="Serve large language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"quartet {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser, metavar="COMMAND")
    for command in COMMANDS:
        one = subparsers.add_parser(command.name, help=command.purpose, allow_abbrev=False)
        if command.name in names:
            import_module(command.module).add_arguments(one)
    return parser, dict(subparsers.choices)


def _run(given: list[str]) -> int:
    parser, commands = make_parser(given[:1])
    arguments, unknown = parser.parse_known_args(given)
    if unknown:
        commands[arguments.command].error(f"unrecognized arguments: {unknown[0]}")
    module = {command.name: command.module for command in COMMANDS}[arguments.command]
    try:
        return int(import_module(module).run(arguments))
    except StartError as error:
        show_failure(str(error))
        return error.exit_code
    except EngineError as error:
        complain(f"quartet: {error}")
        return EXIT_ENGINE
    except MemoryError:
        show_failure("out of memory: this process may not have as much as it needs; see ulimit -v")
        return ConfigError.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
