"""Properties of every setting, present and future: described, reachable, unambiguous, within its own bounds."""

import collections
import functools
import os
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from quartet.cli.options import OneLineParser, add_options
from quartet.settings import FD_NAMES, RARE, SECTIONS, SHORT_HELP, build_config, parse_value
from quartet.settings.other_engines import ALIASES, NEGATIONS, OTHER_FLAGS
from quartet.wire.config import Config, SchedulerConfig
from quartet.wire.errors import ConfigError
from tests.support.wire_samples import CONFIG


def fields() -> list[tuple[str, inspect.Field]]:
    """Return (section, field) of every setting."""
    found = []
    for section, struct in SECTIONS.items():
        info = inspect.type_info(struct)
        assert isinstance(info, inspect.StructType)
        found += [(section, field) for field in info.fields]
    return found


FIELDS = fields()
NAMES = [field.name for _, field in FIELDS]
EVERY_FIELD = pytest.mark.parametrize(("section", "field"), FIELDS, ids=NAMES)


@functools.cache
def parser() -> OneLineParser:
    made = OneLineParser(prog="quartet serve", allow_abbrev=False)
    add_options(made)
    return made


def bare(kind: inspect.Type) -> inspect.Type:
    """Return the type under its description, without None."""
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    if isinstance(kind, inspect.UnionType):
        return next(option for option in kind.types if not isinstance(option, inspect.NoneType))
    return kind


def outside() -> list[tuple[str, inspect.Type, Any, Any]]:
    """Return (name, type, bound, a value just outside) for every bound of every setting."""
    found: list[tuple[str, inspect.Type, Any, Any]] = []
    for _, field in FIELDS:
        kind = bare(field.type)
        if not isinstance(kind, inspect.IntType | inspect.FloatType):
            continue
        step = 1 if isinstance(kind, inspect.IntType) else 0.001
        for bound, value in (
            (kind.ge, None if kind.ge is None else kind.ge - step),
            (kind.le, None if kind.le is None else kind.le + step),
            (kind.gt, kind.gt),
            (kind.lt, kind.lt),
        ):
            if bound is not None:
                found.append((field.name, field.type, bound, value))
    return found


def test_the_sections_are_those_of_the_configuration() -> None:
    hints = {field.name: bare(field.type) for field in inspect.type_info(Config).fields}  # type: ignore[attr-defined]
    assert set(SECTIONS) == set(hints) - {"resolved", "script", "is_coloured"}


@EVERY_FIELD
def test_it_is_described(section: str, field: inspect.Field) -> None:
    assert isinstance(field.type, inspect.Metadata) and field.type.extra_json_schema is not None
    description = field.type.extra_json_schema["description"]
    assert len(description) > 5 and not description.endswith(".")


@EVERY_FIELD
def test_it_can_be_set(section: str, field: inspect.Field) -> None:
    options = {option: action.dest for action in parser()._actions for option in action.option_strings}
    if field.name in RARE:
        assert section == "scheduler", "only --scheduler-set reaches fields without a flag"
        assert f"--{field.name.replace('_', '-')}" not in options
        return
    assert options[f"--{field.name.replace('_', '-')}"] == f"{section}.{field.name}"


@EVERY_FIELD
def test_it_has_a_default_that_it_would_take_itself(section: str, field: inspect.Field) -> None:
    assert field.default is not msgspec.NODEFAULT
    if field.default not in (None, ()):
        assert parse_value(field.type, str(field.default), "--x") == field.default


def test_names_are_unique_across_sections() -> None:
    repeated = [name for name, count in collections.Counter(NAMES).items() if count > 1]
    assert not repeated, "two settings would share one environment variable"


def test_no_two_flags_collide() -> None:
    flags = [option for action in parser()._actions for option in action.option_strings]
    assert len(flags) == len(set(flags))


def test_tables_name_settings_that_exist() -> None:
    schedulers = {field.name for section, field in FIELDS if section == "scheduler"}
    assert set(ALIASES) | set(NEGATIONS) <= set(NAMES) and not set(ALIASES) & RARE
    assert set(NAMES) - RARE >= SHORT_HELP
    assert all(flag.settings() <= set(NAMES) for flag in OTHER_FLAGS)
    assert schedulers >= RARE and schedulers >= FD_NAMES


def test_help_all_shows_every_flag_with_its_description() -> None:
    shown = " ".join(parser().format_help(is_all=True).split())
    for _, field in FIELDS:
        if field.name not in RARE:
            assert isinstance(field.type, inspect.Metadata) and field.type.extra_json_schema
            assert f"--{field.name.replace('_', '-')}" in shown
            words = field.type.extra_json_schema["description"].split()
            assert " ".join(words[:3]) in shown.replace("- ", "-"), field.name


@pytest.mark.parametrize(("name", "kind", "bound", "value"), outside(), ids=lambda value: str(value)[:40])
def test_outside_of_its_bound_it_is_refused_by_name_value_and_bound(
    name: str, kind: inspect.Type, bound: Any, value: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_value(kind, str(value), f"--{name}")
    message = str(caught.value)
    assert message.startswith(f"--{name}: {value} ") and message.endswith(f" {bound}")


def test_at_its_inclusive_bound_a_value_is_taken() -> None:
    for _, field in FIELDS:
        kind = bare(field.type)
        for bound in (getattr(kind, "ge", None), getattr(kind, "le", None)):
            if bound is not None:
                assert parse_value(field.type, str(bound), "--x") == bound


def test_the_defaults_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7))
    assert build_config({}, {}) == Config()


def test_the_whole_configuration_travels() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(CONFIG), type=Config) == CONFIG


def test_an_unknown_field_does_not_travel() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"scheduler": {"chunk": 3}}, Config)


def test_it_is_never_changed() -> None:
    with pytest.raises(AttributeError):
        CONFIG.scheduler.page_size = 32  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        Config().scheduler = SchedulerConfig()  # type: ignore[misc]


def test_a_child_can_rely_on_the_model() -> None:
    assert CONFIG.require_model() is CONFIG.resolved
    with pytest.raises(ValueError, match="not been resolved"):
        Config().require_model()
