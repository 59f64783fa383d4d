"""Settings of a file, the origin of each setting, and variables that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from quartet.cli.main import main
from quartet.cli.options import OneLineParser, add_options
from quartet.settings import RARE, SETTINGS, Configuration, configure, unknown_variables
from quartet.wire.errors import ConfigError
from tests.support.wire_samples import CONFIG

PARSER = OneLineParser(prog="quartet serve", allow_abbrev=False)
add_options(PARSER)

YAML = """
model: m
max-model-len: 4k
server:
  port: 31000
  api_key: [a, b]
scheduler:
  retract-decode-steps: 7
  enable-prefix-caching: false
  insecure: true
tensor-parallel-size: 1
"""
TOML = """
model = "m"
max-model-len = "4k"
[server]
port = 31000
api_key = ["a", "b"]
[scheduler]
retract-decode-steps = 7
enable-prefix-caching = false
insecure = true
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(text: str, suffix: str = ".yaml", argv: tuple[str, ...] = (), **environment: str) -> Configuration:
    name = f"q{suffix}"
    Path(name).write_text(text)
    return configure({**vars(PARSER.parse_args(argv)), "config": name}, environment)


def refusal(text: str, suffix: str = ".yaml") -> str:
    with pytest.raises(ConfigError) as caught:
        configured(text, suffix)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("text", "suffix"), [(YAML, ".yaml"), (YAML, ".yml"), (TOML, ".toml")])
def test_keys_are_names_of_flags_and_sections_are_optional(text: str, suffix: str) -> None:
    config, origins, _ = configured(text, suffix)
    assert (config.model.model_path, config.model.context_length, config.server.port) == ("m", 4000, 31000)
    assert (config.server.api_key, config.scheduler.retract_decode_steps) == (("a", "b"), 7)
    assert config.scheduler.disable_radix_cache and config.server.insecure
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "31000" in row)
    assert origins["port"] == f"q{suffix}:{line}"


def test_json_is_yaml() -> None:
    assert configured(json.dumps({"port": 1, "server": {"insecure": True}}), ".json").config.server.port == 1


def test_flag_before_variable_before_file_before_default() -> None:
    text = "port: 1\npage-size: 8\ncontext_length: 5\n"
    found = configured(text, argv=("--port", "3"), QUARTET_PORT="2", QUARTET_PAGE_SIZE="32")
    assert (found.config.server.port, found.config.worker.page_size, found.config.model.context_length) == (3, 32, 5)
    assert found.origins == {"port": "--port", "page_size": "QUARTET_PAGE_SIZE", "context_length": "q.yaml:3"}


def test_a_switch_of_the_file_is_turned_off_by_its_flag() -> None:
    assert configured("insecure: true").config.server.insecure
    assert not configured("insecure: true", argv=("--no-insecure",)).config.server.insecure


def test_the_file_may_be_named_by_a_variable() -> None:
    Path("q.yaml").write_text("port: 5")
    assert configure({}, {"QUARTET_CONFIG": "q.yaml"}).config.server.port == 5


def test_every_setting_can_be_in_a_file() -> None:
    text = "\n".join(f"{name}: {json.dumps(setting.default)}" for name, setting in SETTINGS.items() if setting.default)
    assert set(configured(text).origins) == {name for name, setting in SETTINGS.items() if setting.default}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nprot: 1", "q.yaml:2: prot is not a setting; did you mean port"),
        ("port: x", "q.yaml:1: port: 'x' is not an integer"),
        ("port: 70k", "q.yaml:1: port: 70k is not allowed, it must be at most 65535"),
        ("port:", "q.yaml:1: port has no value"),
        ("port: [1]", "q.yaml:1: port has one value, not a list"),
        ("insecure: perhaps", "q.yaml:1: insecure: 'perhaps' is neither true nor false"),
        ("a: {port: 1}", "q.yaml:1: a is no section; those are model, server, scheduler, worker, monitoring"),
        ("server: {host: {a: 1}}", "q.yaml:1: host must be a value or a list of values"),
        ("- port", "q.yaml: the file must hold settings"),
        ("port: 1\nserver: {port: 2}", "q.yaml:2: port is given twice, first at q.yaml:1"),
        ("model: a\nmodel-path: b", "q.yaml:2: model-path and q.yaml:1: model say the same"),
        ("port: [", "q.yaml:1: "),
        ("dp: 2", "q.yaml:1: dp 2: run an engine for each"),
        ("trust-remote-code: true", "q.yaml:1: trust-remote-code true: not needed here"),
        ("num-gpu-blocks-override: 5\nmax-total-tokens: 80", "q.yaml:1: num-gpu-blocks-override 5 and q.yaml:2: "),
        ("x: " + "[" * 5000, "q.yaml"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "q.toml:1: prot is not a setting; did you mean port"),
        ("[server]\nport = 1.5", "q.toml:2: port: '1.5' is not an integer"),
        ("port = ", "q.toml: "),
        ("port = 1979-05-27", "q.toml:1: port must be a value or a list of values"),
        ("port = 1\n[server]\nport = 2", "q.toml:"),
    ],
)
def test_what_is_wrong_in_toml_is_named_too(text: str, message: str) -> None:
    assert refusal(text, ".toml").startswith(message)


def test_a_file_that_cannot_be_read() -> None:
    Path("latin.yaml").write_bytes(b"host: caf\xe9")
    Path("large.yaml").write_text("#" * (1 << 20) + "\nport: 1")
    for name, words in (
        ("nowhere.yaml", "is no file"),
        ("/dev/zero", "does not end in"),
        ("latin.yaml", "is not UTF-8"),
        ("large.yaml", "is larger than"),
    ):
        with pytest.raises(ConfigError, match=words):
            configure({"config": name}, {})


# quartet config


def test_config_shows_changed_settings_first(capsys: pytest.CaptureFixture[str]) -> None:
    Path("q.yaml").write_text("context_length: 4k\nadmin-api-key: secret")
    assert main(["config", "some/model", "--config", "q.yaml", "--scheduler-set", "retract_decode_steps=7"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    changed = [row for row in rows if row[-1] != "default"]
    assert rows[: len(changed)] == changed
    assert ["model_path", "some/model", "--model-path"] in changed
    assert ["context_length", "4000", "q.yaml:1"] in changed
    assert ["admin_api_key", "(1", "given)", "q.yaml:2"] in changed
    assert ["retract_decode_steps", "7", "--scheduler-set", "retract_decode_steps"] in rows
    assert ["port", "30000", "default"] in rows
    assert not {row[0] for row in rows} & RARE - {"retract_decode_steps"}


@pytest.mark.parametrize("flag", ["--all", "--list"])
def test_config_lists_the_rare_settings(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", flag]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(SETTINGS)


def test_config_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--json", "--port", "1", "--api-key", "secret"]) == 0
    text = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(text)["settings"]}
    assert set(rows) == set(SETTINGS) and "secret" not in text
    assert (rows["port"]["value"], rows["port"]["origin"], rows["port"]["default"]) == (1, "--port", 30000)
    assert rows["retract_decode_steps"]["variables"] == [
        "QUARTET_RETRACT_DECODE_STEPS",
        "SGLANG_RETRACT_DECODE_STEPS",
        "FD_RETRACT_DECODE_STEPS",
    ]


def test_config_refuses_what_serve_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--port", "x"]) == 2
    assert capsys.readouterr().err == "quartet: --port: 'x' is not an integer\n"


# Variables


def test_variables_that_are_none_are_named() -> None:
    assert unknown_variables({"QUARTET_PROT": "1"}) == [
        "QUARTET_PROT is no variable of Quartet; did you mean QUARTET_PORT?"
    ]
    assert unknown_variables({"QUARTET_ZZZZ": "1"}) == ["QUARTET_ZZZZ is no variable of Quartet"]
    (line,) = unknown_variables({"FD_RETRACT_DECODE_STEP": "1"})
    assert line.endswith("did you mean FD_RETRACT_DECODE_STEPS?")


def test_variables_of_other_engines_are_theirs() -> None:
    assert not unknown_variables({"SGLANG_USE_MODELSCOPE": "1", "FD_LOG_DIR": "x", "SGLANG_PORT": "1", "PATH": ""})
    assert not unknown_variables({"QUARTET_PORT": "1", "QUARTET_URL": "x", "SGLANG_RETRACT_DECODE_STEPS": "1"})


def test_all_variables_that_the_code_reads_are_known() -> None:
    root = Path(__file__).resolve().parents[4]
    folders = ("quartet", "api_proc", "scheduler_proc", "worker_proc", "tokenizer_proc", "detok_proc", "kernels")
    read = {
        word.strip("\"'")
        for name in folders
        for path in (root / name).rglob("*.py")
        for word in path.read_text().replace("(", " ").replace(")", " ").replace("[", " ").replace(",", " ").split()
        if word.startswith('"QUARTET_') and word.endswith('"') and len(word) > len('"QUARTET_"')
    }
    assert read and not unknown_variables(dict.fromkeys(read, ""))


class Launch:
    """A supervisor that starts nothing, and prints the lines that it would begin with."""

    def __init__(self, _: Any, opening: list[str]) -> None:
        print("\n".join(opening))

    def run(self) -> int:
        return 0


def test_serve_begins_with_what_is_changed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("quartet.supervisor.supervisor.Supervisor", Launch)
    monkeypatch.setattr("quartet.checkpoint.resolve.resolve_model", lambda _: CONFIG.resolved)
    monkeypatch.setenv("QUARTET_SIMULATED_WORKER", "1")
    monkeypatch.setenv("QUARTET_PAGE_SIZE", "32")
    monkeypatch.setenv("QUARTET_PROT", "1")
    assert main(["serve", "--port", "1", "--dtype", "auto", "--api-key", "secret", "--async-scheduling"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "quartet: QUARTET_PROT is no variable of Quartet; did you mean QUARTET_PORT?\n"
    *lines, memory = shown.out.splitlines()
    assert memory.startswith("memory: weights 0.0 + ")
    assert [line.split() for line in lines] == [
        ["--async-scheduling:", "not", "needed", "here:", "steps", "always", "overlap"],
        ["settings", "that", "are", "not", "at", "their", "defaults:"],
        ["port", "1", "--port"],
        ["api_key", "(1", "given)", "--api-key"],
        ["page_size", "32", "QUARTET_PAGE_SIZE"],
        ["simulated_worker", "true", "QUARTET_SIMULATED_WORKER"],
    ]
