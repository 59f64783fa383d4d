"""quartet completion: a script that completes commands, flags and their values in a shell; shtab writes it."""

import argparse

from msgspec import inspect

from quartet.runtime.installed import install_command, is_installed
from quartet.settings import SETTINGS, bare_type
from quartet.wire.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the shell."""
    parser.description = 'Print a completion script; for example: eval "$(quartet completion bash)" in ~/.bashrc.'
    parser.add_argument("shell", choices=SHELLS, help="the shell to write for")


def run(arguments: argparse.Namespace) -> int:
    """Print the script; returns the exit code. Raises ConfigError."""
    print(script(arguments.shell))
    return 0


def script(shell: str) -> str:
    """Return the script of a shell. Raises ConfigError if shtab is missing."""
    if not is_installed("shtab"):
        raise ConfigError(f"shtab, which writes the script, is not installed: {install_command('shtab')}")
    import shtab

    from quartet.cli.main import COMMANDS, make_parser

    parser, _ = make_parser([command.name for command in COMMANDS])
    _add_choices(parser)
    return str(shtab.complete(parser, shell))


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Give flags the values of their settings to choose from; the settings check values themselves."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _add_choices(one)
        setting = SETTINGS.get(action.dest.rpartition(".")[2]) if "." in action.dest else None
        kind = bare_type(setting.type)[0] if setting else None
        if isinstance(kind, inspect.LiteralType):
            action.choices = [str(value) for value in kind.values]
