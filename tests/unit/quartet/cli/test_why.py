"""quartet why: a live request by its route, and one of a trace under two policies."""

import json
from pathlib import Path

import pytest

from quartet.cli.main import main
from quartet.simulator.request import Workload
from quartet.simulator.trace import write_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two hot groups, and one cold request that a cache-aware policy lets wait."""
    hot = [
        Workload(
            arrival_s=0.0, max_tokens=8, output_tokens=8, prefix_group="ab"[n % 2], prefix_tokens=4000, own_tokens=8
        )
        for n in range(40)
    ]
    cold = Workload(arrival_s=0.0, max_tokens=8, output_tokens=8, own_tokens=3000, id="cold")
    path = tmp_path / "trace.jsonl"
    write_trace(path, [*hot[:20], cold, *hot[20:]])
    return path


def test_a_request_of_a_trace_under_two_policies(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["why", "cold", "--trace", str(trace), "--with-policy", "lpm", "--max-running-requests", "2"]
    assert main([*argv, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["fcfs", "lpm"]
    for one in told.values():
        assert sum(part["seconds"] for part in one["parts"]) == pytest.approx(one["total_s"], rel=0.01)
    assert told["lpm"]["ttft_s"] > told["fcfs"]["ttft_s"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "first token" in shown and "fcfs" in shown and "lpm" in shown


def test_a_request_by_its_number(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "21", "--trace", str(trace), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["fcfs"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--trace", "TRACE", "--with-policy", "lmp"], "'lmp' is not one of fcfs, lpm"),
        (["--with-policy", "lpm"], "--with-policy needs --trace"),
        (["--trace", "/nowhere"], "/nowhere: No such file or directory"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    more: list[str], words: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why", "cold", *(str(trace) if one == "TRACE" else one for one in more)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and words in shown.err


def test_a_number_that_the_trace_does_not_have(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "42", "--trace", str(trace)]) == 2
    assert "from 1 to 41" in capsys.readouterr().err
