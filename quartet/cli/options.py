"""Flags derived from the table of settings: one setting, one place; help that fits a screen, and all of it."""

import argparse
import copy
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from msgspec import inspect

from quartet.runtime.failure_box import complain
from quartet.settings import (
    RARE,
    SECTIONS,
    SETTINGS,
    SHORT_HELP,
    Setting,
    bare_type,
    did_you_mean,
    flag_of,
    variables_of,
)
from quartet.settings.other_engines import ALIASES, NEGATIONS, OTHER_FLAGS

TITLES = {
    "model": "model",
    "server": "server",
    "scheduler": "scheduling",
    "worker": "device and memory",
    "monitoring": "monitoring",
}
HELP_COLUMN = 34
MOST_COLUMNS = 110


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line on standard error, with the nearest flags for an unknown one.

    Flags may be written with underscores. Settings that are not in SHORT_HELP are left out of --help, and
    --help-all describes them all with their variables and other names.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(*arguments, **options)
        self._positionals.title, self._optionals.title = "arguments", "options"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, with dashes for underscores in the names of flags."""
        return super().parse_known_args(_with_dashes(sys.argv[1:] if args is None else args), namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        if message.startswith("unrecognized arguments:"):
            unknown = (message.split(":", 1)[1].split() or ["''"])[0]
            known = {option: option for action in self._actions for option in action.option_strings}
            if "--scheduler-set" in known:
                rare = {flag_of(name): f"--scheduler-set {name}=VALUE" for name in sorted(RARE)}
                known = {**rare, **known}
            message = f"unknown argument {unknown}" + did_you_mean(unknown.split("=")[0], known)
        complain(f"{self.prog}: {message}")
        sys.exit(2)

    def format_help(self, is_all: bool = False) -> str:
        """Return the help; without `is_all` only of the settings in SHORT_HELP."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage or self._short_usage(), self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            shown = [_described(action, is_all) for action in group._group_actions if is_all or not _is_long(action)]
            formatter.start_section(group.title)
            formatter.add_arguments(shown)
            formatter.end_section()
        if is_all and "--scheduler-set" in self._option_string_actions:
            formatter.start_section("rare settings of scheduling, for --scheduler-set")
            formatter.add_arguments([_rare(SETTINGS[name]) for name in SETTINGS if name in RARE])
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def _short_usage(self) -> str | None:
        places = [
            f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar or action.dest)
            for action in self._get_positional_actions()
        ]
        has_settings = any(_setting_of(action) for action in self._actions)
        return " ".join([self.prog.replace("%", "%%"), *places, "[flags]"]) if has_settings else None


class _Formatter(argparse.HelpFormatter):
    """Help of a limited width, whose names are not broken at the end of a line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN)
        self._width = min(self._width, MOST_COLUMNS)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


def _with_dashes(args: Sequence[str]) -> list[str]:
    given, literal = list(args), len(args)
    if "--" in given:
        literal = given.index("--")
    for place, text in enumerate(given[:literal]):
        if text.startswith("--"):
            flag, equals, value = text.partition("=")
            given[place] = flag.replace("_", "-") + equals + value
    return given


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, OneLineParser)
        parser._print_message(parser.format_help(is_all=True), sys.stdout)
        parser.exit()


class _OtherFlag(argparse.Action):
    """Notes a flag of another engine and its value under the name that was given."""

    def __call__(self, _: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given = list(getattr(namespace, self.dest) or [])
        namespace.other_flags = [*given, (option_string, values or "")]


def add_options(parser: argparse.ArgumentParser, names: Collection[str] = SETTINGS.keys()) -> None:
    """Add the flags of settings, all unless `names` are given, with the names of other engines for them."""
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all flags, with variables")
    for section in SECTIONS:
        group = _group(parser, TITLES[section])
        for name, setting in SETTINGS.items():
            if setting.section == section and name in names and name not in RARE:
                _add_setting(group, setting)
    _group(parser, TITLES["scheduler"]).add_argument(
        "--scheduler-set",
        action="append",
        metavar="NAME=VALUE",
        help="set one of the rare settings, which --help-all lists; repeatable",
    )
    for other in OTHER_FLAGS:
        if other.settings() <= set(names) and (other.settings() or "model_path" in names):
            kind: dict[str, Any] = {"nargs": 0} if other.is_switch else {}
            parser.add_argument(
                *other.names, action=_OtherFlag, dest="other_flags", default=None, help=argparse.SUPPRESS, **kind
            )


def _group(parser: argparse.ArgumentParser, title: str) -> Any:
    found = [group for group in parser._action_groups if group.title == title]
    return found[0] if found else parser.add_argument_group(title)


def _add_setting(group: Any, setting: Setting) -> None:
    kind, _ = bare_type(setting.type)
    extra: dict[str, Any] = {"dest": f"{setting.section}.{setting.name}", "default": None}
    negative = None
    if isinstance(kind, inspect.BoolType):
        extra |= {"action": "store_const", "const": "true"}
        negative = {**extra, "const": "false", "help": argparse.SUPPRESS}
    elif isinstance(kind, inspect.VarTupleType):
        extra |= {"action": "append", "metavar": "TEXT"}
    else:
        extra["metavar"] = _metavar(kind)
    group.add_argument(flag_of(setting.name), help=setting.name, **extra)
    if setting.name in ALIASES:
        group.add_argument(*ALIASES[setting.name], **{**extra, "help": argparse.SUPPRESS})
    if negative:
        group.add_argument("--no-" + flag_of(setting.name)[2:], *NEGATIONS.get(setting.name, ()), **negative)


def _metavar(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return "{" + ",".join(map(str, kind.values)) + "}"
    return "N" if isinstance(kind, inspect.IntType) else "X" if isinstance(kind, inspect.FloatType) else "TEXT"


def _setting_of(action: argparse.Action) -> Setting | None:
    is_hidden = action.help == argparse.SUPPRESS
    return None if is_hidden else SETTINGS.get(action.dest.rpartition(".")[2]) if "." in action.dest else None


def _is_long(action: argparse.Action) -> bool:
    """Return whether only --help-all shows the flag."""
    setting = _setting_of(action)
    return action.dest == "scheduler_set" or (setting is not None and setting.name not in SHORT_HELP)


def _described(action: argparse.Action, is_all: bool) -> argparse.Action:
    setting = _setting_of(action)
    if setting is None:
        return action
    shown = copy.copy(action)
    shown.help = (full_text if is_all else short_text)(setting).replace("%", "%%")
    if not is_all and len(str(shown.metavar)) > len("{float32,float16}"):
        shown.metavar = "NAME"
    return shown


def _rare(setting: Setting) -> argparse.Action:
    """Return a row of the help for a setting without a flag."""
    kind, _ = bare_type(setting.type)
    value = "BOOL" if isinstance(kind, inspect.BoolType) else _metavar(kind)
    return _Row([], setting.name, metavar=f"{setting.name}={value}", help=full_text(setting).replace("%", "%%"))


class _Row(argparse.Action):
    """Something that help shows and no command line has."""

    def __call__(self, *_: Any) -> None: ...


def short_text(setting: Setting) -> str:
    """Return the first clause of the description, and the default if it says something."""
    _, text = bare_type(setting.type)
    return text.split("; ")[0].split(": ")[0] + default_text(setting)


def full_text(setting: Setting) -> str:
    """Return the whole description, the default, the variables and the names that other engines have."""
    _, text = bare_type(setting.type)
    others = [*ALIASES.get(setting.name, ()), *(f"{name} (off)" for name in NEGATIONS.get(setting.name, ()))]
    names = [*others, *variables_of(setting.name)]
    return f"{text}{default_text(setting)} [{', '.join(names)}]"


def default_text(setting: Setting) -> str:
    """Return the default in brackets; nothing where it stands for what the description says."""
    default = setting.default
    return (
        ""
        if default in ("", (), None, 0) or isinstance(default, bool)
        else f" ({default:g})"
        if isinstance(default, float)
        else f" ({default})"
    )
