"""Where values of settings come from, and the configuration that they make.

A source gives some settings, each with its origin as a message names it. Precedence: flag, `--scheduler-set`,
`QUARTET_<NAME>`, variables of other engines, the file of --config, default.
"""

import difflib
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from quartet.runtime.home import expand_home
from quartet.settings.checks import check_together
from quartet.settings.fields import RARE, SECTIONS, SETTINGS, bare_type, flag_of
from quartet.settings.file import read_entries
from quartet.settings.other_engines import NAMES, OTHERS, meaning_of
from quartet.settings.values import parse_value
from quartet.settings.variables import variables_of
from quartet.wire.config import Config, ServerConfig
from quartet.wire.errors import ConfigError

CORES_FOR_TWO_TOKENIZERS = 8


class Given(NamedTuple):
    """What a source gives for a setting: text, or a list of texts, where it says so, and the key there of a file."""

    value: Any
    origin: str
    key: str = ""

    @property
    def named(self) -> str:
        """The beginning of a message about the value."""
        return f"{self.origin}: {self.key}" if self.key else self.origin


class OtherGiven(NamedTuple):
    """A flag of another engine that a source gives, its value ("" for a switch), and where it says so."""

    flag: str
    value: str
    origin: str


class Configuration(NamedTuple):
    """The configuration of a launch, the origin of each setting that is given, and what is to be said about flags."""

    config: Config
    origins: dict[str, str]
    notes: list[str]


def build_config(
    arguments: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    names: Collection[str] = SETTINGS.keys(),
) -> Config:
    """Return the configuration alone; see configure."""
    return configure(arguments, environment, names).config


def configure(
    arguments: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    names: Collection[str] = SETTINGS.keys(),
) -> Configuration:
    """Make the configuration of a launch from parsed flags (`section.field` to text) and the environment.

    `names` are the settings that the command has; variables of others are not read. Raises ConfigError for a value
    that is not allowed; the message names its origin and the bound.
    """
    from_file, others_of_file = _from_file(arguments.get("config") or environment.get("QUARTET_CONFIG", ""))
    from_flags = _from_scheduler_set(arguments.get("scheduler_set") or []) | _from_flags(arguments)
    others = [OtherGiven(flag, value, f"{flag} {value}".rstrip()) for flag, value in arguments.get("other_flags") or []]
    given = from_file | _from_other_flags(others_of_file, from_file, from_file)
    given |= _from_environment(environment, names) | from_flags
    given |= _from_other_flags(others, from_flags, given)
    given = {name: one for name, one in given.items() if name in names}
    sections: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        own = {setting for setting in given if SETTINGS[setting].section == name}
        sections[name] = section(
            **{one: parse_value(SETTINGS[one].type, given[one].value, given[one].named) for one in own}
        )
    sections["server"] = _plain(sections["server"])
    if "tokenizer_procs" not in given and len(os.sched_getaffinity(0)) >= CORES_FOR_TWO_TOKENIZERS:
        sections["server"] = msgspec.structs.replace(sections["server"], tokenizer_procs=2)
    config = Config(**sections)
    if {"new_token_ratio_decay", "new_token_ratio_decay_steps"} <= given.keys():
        decay, steps = given["new_token_ratio_decay"].named, given["new_token_ratio_decay_steps"].named
        raise ConfigError(f"{decay} and {steps} exclude each other: give the fall of each step, or the number of steps")
    check_together(config)
    switches = [one for one in (*others_of_file, *others) if OTHERS[one.flag].is_switch and OTHERS[one.flag].line]
    notes = [f"{one.origin}: {OTHERS[one.flag].line}" for one in switches]
    return Configuration(config, {name: one.origin for name, one in given.items()}, notes)


def _from_flags(arguments: Mapping[str, Any]) -> dict[str, Given]:
    values = {name: arguments.get(f"{setting.section}.{name}") for name, setting in SETTINGS.items()}
    return {name: Given(value, flag_of(name)) for name, value in values.items() if value is not None}


def _from_file(path: str) -> tuple[dict[str, Given], list[OtherGiven]]:
    """Return the settings of a file, and the flags of other engines in it. Raises ConfigError."""
    given: dict[str, Given] = {}
    others = []
    for key, value, origin in read_entries(path) if path else ():
        flag = "--" + key.replace("_", "-")
        if flag in NAMES:
            name, is_negated = NAMES[flag]
            if name in given:
                raise ConfigError(f"{origin}: {key} and {given[name].named} say the same: give one of them")
            if isinstance(value, list) and not isinstance(bare_type(SETTINGS[name].type)[0], inspect.VarTupleType):
                raise ConfigError(f"{origin}: {key} has one value, not a list")
            if is_negated:
                value = str(not parse_value(SETTINGS[name].type, value, f"{origin}: {key}")).lower()
            given[name] = Given(value, origin, key)
        elif flag in OTHERS and isinstance(value, str):
            if not OTHERS[flag].is_switch or value.lower() in ("true", "1"):
                others.append(OtherGiven(flag, "" if OTHERS[flag].is_switch else value, f"{origin}: {key} {value}"))
        else:
            raise ConfigError(f"{origin}: {key} is not a setting" + did_you_mean(flag, {one: one[2:] for one in NAMES}))
    return given, others


def _from_other_flags(
    flags: list[OtherGiven], own: Mapping[str, Given], given: Mapping[str, Given]
) -> dict[str, Given]:
    """Return the settings that flags of other engines stand for; `own` are those of the same source, `given` of all.

    Raises ConfigError for what is not done, and beside a setting of the same source.
    """
    found: dict[str, Given] = {}
    for one in flags:
        meaning = meaning_of(one.flag, one.value, one.origin, _page_size(given))
        for name, text in meaning.items():
            if name in own:
                raise ConfigError(f"{one.origin} and {own[name].named} say the same: give one of them")
            found[name] = Given(text, one.origin)
    return found


def _page_size(given: Mapping[str, Given]) -> int:
    one = given.get("page_size", Given(SETTINGS["page_size"].default, ""))
    return int(parse_value(SETTINGS["page_size"].type, one.value, one.named))


def _from_environment(environment: Mapping[str, str], names: Collection[str]) -> dict[str, Given]:
    return {
        name: Given(environment[variable], variable)
        for name in names
        for variable in reversed(variables_of(name))
        if variable in environment
    }


def _from_scheduler_set(pairs: list[str]) -> dict[str, Given]:
    """Parse the `name=value` pairs of --scheduler-set; any scheduler field may be named."""
    known = [name for name, setting in SETTINGS.items() if setting.section == "scheduler"]
    given = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"--scheduler-set: {pair!r} is not name=value with the name of a scheduler setting{hint}")
        given[name] = Given(value, f"--scheduler-set {name}")
    return given


def did_you_mean(name: str, known: Mapping[str, str] | list[str]) -> str:
    """Return the end of a message that names what is nearest to `name`; a map says what to show for each."""
    near = difflib.get_close_matches(name, known, 3, 0.5)
    shown = dict.fromkeys(known[one] if isinstance(known, Mapping) else one for one in near)
    return f"; did you mean {', '.join(shown)}?" if shown else ""


def _plain(server: ServerConfig) -> ServerConfig:
    """Return the section without brackets around the host, as in a URL, and with home directories for ~."""
    host = server.host[1:-1] if server.host.startswith("[") and server.host.endswith("]") else server.host
    paths = {name: str(expand_home(path)) for name in ("run_dir", "record_trace") if (path := getattr(server, name))}
    return msgspec.structs.replace(server, host=host, **paths)


SERVING = ("server", "monitoring")
"""Sections that say nothing to an engine without a server."""
OFFLINE = frozenset(name for name, setting in SETTINGS.items() if setting.section not in SERVING)
"""The settings of an engine without a server."""


def keyword_config(settings: Mapping[str, Any]) -> Config:
    """Make a configuration from keywords named after the fields of quartet.wire.config, and the environment.

    Settings of the HTTP server do not apply. Raises ConfigError for an unknown name or a value that is not allowed.
    """
    known = {name: SETTINGS[name].section for name in SETTINGS if name in OFFLINE}
    for name in settings:
        if name not in known:
            raise ConfigError(f"{name} is not a setting" + did_you_mean(name, list(known)))
    arguments = {f"{known[name]}.{name}": value for name, value in settings.items() if name not in RARE}
    rare = [f"{name}={value}" for name, value in settings.items() if name in RARE]
    return build_config({**arguments, "scheduler_set": rare}, names=known)
