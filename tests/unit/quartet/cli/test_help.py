"""Help that fits a screen, help that has everything, and hints at the flag that was meant."""

import functools
import re
from pathlib import Path

import pytest

from quartet.cli.main import COMMANDS, main
from quartet.cli.options import OneLineParser, add_options
from quartet.settings import FD_NAMES, RARE, SETTINGS, SHORT_HELP, flag_of
from quartet.settings.other_engines import ALIASES, OTHER_FLAGS

ROOT = Path(__file__).resolve().parents[4]
MOST_FLAGS = 88
FLAGS = [flag_of(name) for name in SETTINGS if name not in RARE]
RULE_ID = re.compile(r"\b[A-Z]{2,4}-\d+|\(U\d\)")


@functools.cache
def parser() -> OneLineParser:
    made = OneLineParser(prog="quartet serve", allow_abbrev=False)
    add_options(made)
    return made


def shown(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a command prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    return capsys.readouterr().out


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE))


def hint(flag: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit):
        parser().parse_args([flag])
    return re.findall(r"--[\w-]+(?: \w+=VALUE)?", capsys.readouterr().err.partition("did you mean")[2])


def test_help_fits_a_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["serve", "--help"], monkeypatch, capsys)
    lines = text.splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 80
    assert {flag_of(name) for name in SHORT_HELP} <= flags_in(text)
    assert len(SHORT_HELP) <= 26


def test_help_all_has_everything_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(["serve", "--help-all"], monkeypatch, capsys)
    assert set(FLAGS) <= flags_in(text)
    assert "_" not in "".join(flags_in(text)), "a spelling is shown twice"
    assert len(flags_in(text)) < MOST_FLAGS
    words = " ".join(text.split())
    for name in set(SETTINGS) - RARE:
        assert re.search(rf"QUARTET_{name.upper()}(]|, SGLANG_{name.upper()}])", words)
    for alias in (one for aliases in ALIASES.values() for one in aliases):
        assert alias in words


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_no_help_names_rules(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([command, "--help"], monkeypatch, capsys)
    assert not RULE_ID.findall(text)
    if "--help-all" in text:
        assert not RULE_ID.findall(shown([command, "--help-all"], monkeypatch, capsys))


@pytest.mark.parametrize("name", sorted(RARE))
def test_no_rare_setting_names_rules(name: str) -> None:
    assert not RULE_ID.findall(str(SETTINGS[name].type))


@pytest.mark.parametrize("command", ["simulate", "advise"])
@pytest.mark.parametrize("which", ["--help", "--help-all"])
def test_a_simulation_has_no_flags_of_the_server(
    command: str, which: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_in(shown([command, which], monkeypatch, capsys))
    others = {
        flag_of(name) for name, setting in SETTINGS.items() if setting.section in ("server", "worker", "monitoring")
    }
    assert flags & others == {"--page-size", "--max-total-tokens"}
    assert "--schedule-policy" in flags


def test_a_simulation_does_not_read_variables_of_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUARTET_HOST", "0.0.0.0")
    assert main(["simulate", "--scenario", "steady", "--requests", "2", "--json"]) == 0


def test_underscores_are_dashes() -> None:
    assert vars(parser().parse_args(["--page_size", "8"]))["worker.page_size"] == "8"
    assert vars(parser().parse_args(["--page_size=8"]))["worker.page_size"] == "8"
    assert vars(parser().parse_args(["--run-dir", "a_b"]))["server.run_dir"] == "a_b"


# Hints


@pytest.mark.parametrize("place", [3, -2])
def test_a_flag_with_one_character_wrong_is_recognised(place: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One character missing, and two swapped; all places of all flags give the same, in a minute of computing."""
    known = {option for action in parser()._actions for option in action.option_strings}
    for flag in FLAGS:
        at = place % len(flag)
        swapped = flag[: at - 1] + flag[at] + flag[at - 1] + flag[at + 1 :]
        for wrong in {flag[:at] + flag[at + 1 :], swapped} - known:
            assert flag in hint(wrong, capsys), wrong


@pytest.mark.parametrize("name", sorted(RARE))
def test_a_rare_setting_is_shown_as_it_is_set(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--scheduler-set {name}=VALUE" in hint(flag_of(name), capsys)
    assert f"--scheduler-set {name}=VALUE" in hint(flag_of(name)[:-1], capsys)


def test_flags_of_other_engines_are_hinted_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (name for other in OTHER_FLAGS for name in other.names if len(name) > 6):
        assert flag in hint(flag[:4] + flag[5:], capsys)


def test_the_knobs_of_fastdeploy_are_documented() -> None:
    words = parser().format_help(is_all=True).split()
    for name in RARE:
        assert any(word.startswith(f"{name}=") for word in words)
        assert any(word.startswith(f"SGLANG_{name.upper()}") for word in words)
    assert all(f"FD_{name.upper()}]" in words for name in FD_NAMES)


def test_the_page_on_scheduling_has_the_knobs_of_fastdeploy_with_their_defaults() -> None:
    page = (ROOT / "docs" / "scheduling.md").read_text()
    rows = dict(re.findall(r"^\| `FD_\w+` \| `(\w+)`: .* \| (.*) \|$", page, re.MULTILINE))
    defaults = {name: SETTINGS[name].default for name in FD_NAMES}
    assert rows == {name: "from the steps" if value is None else str(value) for name, value in defaults.items()}
