"""quartet check: what a launch would meet, as a table or as JSON, with the exit code that the launch would have."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from quartet.cli.main import main
from tests.golden.oracles import FOLDER

TINY = str(FOLDER / "models" / "qwen3")
FLAGS = ("--device", "cpu", "--port", "0")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUARTET_CACHE_DIR", str(tmp_path / "cache"))


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Return the exit code, the findings by name and the whole report."""
    code = main(["check", *arguments, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["exit_code"] == code
    return code, {one["name"]: one for one in shown["findings"]}, shown


def test_a_launch_that_would_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, findings, shown = report(capsys, TINY, *FLAGS)
    assert code == 0 and all(one["is_ok"] for one in findings.values())
    assert list(findings) == ["torch", "model", "device", "memory", "port", "cache"]
    assert "Qwen3ForCausalLM, supported, context 512" in findings["model"]["found"]
    assert shown["memory"]["kv_tokens"] > 0 and shown["memory"]["context_length"] == 512
    assert "GiB of disk free" in findings["cache"]["found"] and str(tmp_path) in findings["cache"]["found"]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TINY, *FLAGS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", name] for name in ("torch", "model", "device", "memory", "port", "cache")
    ]
    assert "requests of 512" in lines[3]


def test_everything_is_looked_at_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, findings, shown = report(
            capsys, TINY, "--device", "cpu", "--port", port, "--max-total-tokens", "100000000000"
        )
    assert code == 2 and shown["memory"] is None
    assert {name for name, one in findings.items() if not one["is_ok"]} == {"memory", "port"}
    assert "give --max-total-tokens" in findings["memory"]["found"] and port in findings["port"]["found"]


def test_a_model_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, findings, _ = report(capsys, "/no/such/model", *FLAGS)
    assert code == 3 and not findings["model"]["is_ok"] and "memory" not in findings
    assert findings["port"]["is_ok"]


def test_a_wrong_setting_is_refused_as_by_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", TINY, "--page-size", "1000"]) == 2
    assert "--page-size: 1000 is not allowed" in capsys.readouterr().err
