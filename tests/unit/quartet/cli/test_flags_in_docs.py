"""Flags in the pages: each exists, and the table of scheduling has the defaults of the fields."""

import argparse
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from quartet.cli.main import COMMANDS, make_parser
from quartet.settings import SETTINGS, flag_of

ROOT = Path(__file__).resolve().parents[4]
GUIDES = tuple(f"docs/guides/from-{name}.md" for name in ("ollama", "sglang", "vllm"))
PAGES = ("README.md", "docs/operations.md", "docs/scheduling.md", *GUIDES)
OTHER_PROGRAMS = {"--build-arg", "--time", "--quick", "--modelfile"}
"""Flags of Docker, vLLM's chat and Ollama in the pages."""


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from flags(one)


@functools.cache
def known_flags() -> frozenset[str]:
    return frozenset(flags(make_parser([command.name for command in COMMANDS])[0]))


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_of_a_page_exists(page: str) -> None:
    code = re.findall(r"`[^`\n]*`|^quartet .*$", (ROOT / page).read_text(), re.MULTILINE)
    ours = {flag for part in code if "python -m" not in part for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", part)}
    unknown = ours - OTHER_PROGRAMS - known_flags()
    assert not unknown


def test_the_table_of_scheduling_has_the_defaults() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| ([\w. ]+) \|", (ROOT / "docs" / "scheduling.md").read_text(), re.MULTILINE)
    defaults = {flag_of(name): str(setting.default) for name, setting in SETTINGS.items()}
    words = {"off": ("False",), "by memory": ("0",), "by the device": ("0",), "on a GPU": ("None",)}
    assert len(rows) >= 10
    assert not {flag: told for flag, told in rows if defaults[flag] not in words.get(told, (told,))}
