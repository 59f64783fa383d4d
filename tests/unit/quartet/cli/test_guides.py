"""The guides from other engines: what they say of flags and metrics is what the tables say, and their commands parse.

`python -m tests.unit.quartet.cli.test_guides` writes what the table of flags says into the guides.
"""

import re
import shlex
from pathlib import Path

import pytest

from quartet.cli.main import make_parser
from quartet.settings import flag_of
from quartet.settings.other_engines import NAMES, OTHERS

DOCS = Path(__file__).resolve().parents[4] / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
FLAG_ROW = re.compile(r"^\| `(--[a-z-]+)` \| ?(.*?) ?\|$", re.MULTILINE)
METRIC_ROW = re.compile(r"^\| `((?:vllm|sglang):\w+)` \| `(\w+)` \|$", re.MULTILINE)


def meaning(flag: str) -> str:
    """Return what a flag is here, in the words of the table that the command line follows."""
    if flag in NAMES:
        setting, is_off = NAMES[flag]
        ours = f"`{flag_of(setting)}`"
        return "the same" if flag == flag_of(setting) else f"{ours} turned off" if is_off else ours
    other = OTHERS[flag]
    settings = [f"`{flag_of(name)}`" for name in sorted(other.settings())]
    if settings:
        return " and ".join(settings) + (" in tokens" if other.is_in_pages else "")
    if other.is_switch:
        return other.line if other.meanings else f"refused: {other.line}"
    values = ", ".join(f"`{value}`" for value in other.meanings)
    return f"{values}; else refused: {other.line}" if values else f"refused: {other.line}"


def with_meanings(page: str) -> str:
    return FLAG_ROW.sub(lambda row: f"| `{row[1]}` | {meaning(row[1])} |", page)


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_flags_mean_what_the_table_says(path: Path) -> None:
    page = path.read_text()
    assert page == with_meanings(page)
    assert path.stem == "from-ollama" or len(FLAG_ROW.findall(page)) > 15


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_metrics_are_those_of_the_aliases(path: Path) -> None:
    rows = METRIC_ROW.findall(path.read_text())
    assert set(rows) <= set(METRIC_ROW.findall((DOCS / "metrics.md").read_text()))
    assert rows or path.stem == "from-ollama"


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_commands_are_taken(path: Path) -> None:
    """Those in blocks and in tables; in a block another engine's line has the same flags as ours below it."""
    page = path.read_text()
    block = re.findall(r"^(quartet .*)$", page, re.MULTILINE)
    for line in [*block, *re.findall(r"`(?:cat FILE \\\| )?(quartet [^`]+)`", page)]:
        words = shlex.split(line)[1:]
        _, unknown = make_parser(words[:1])[0].parse_known_args(words)
        assert not unknown
    theirs = re.findall(r"^(?:vllm|sglang) (serve .*)\nquartet (.*)$", page, re.MULTILINE)
    assert all(one == ours for one, ours in theirs)
    assert block and (theirs or path.stem == "from-ollama")


if __name__ == "__main__":
    for guide in GUIDES:
        guide.write_text(with_meanings(guide.read_text()))
