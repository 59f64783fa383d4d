"""`quartet bench` against a real server whose worker is simulated: figures, a recorded trace, failures, plots."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, free_port

pytestmark = pytest.mark.e2e

STEP_MS, OUTPUT, PROMPTS = 10, 12, 24
COMMAND = [sys.executable, "-m", "quartet.cli.main", "bench"]
TRAFFIC = ("--num-prompts", str(PROMPTS), "--random-input-len", "40", "--random-output-len", str(OUTPUT))


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=100)


def result_of(*arguments: str) -> dict[str, Any]:
    finished = bench(*arguments, "--json")
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace") / "recorded.jsonl"


@pytest.fixture(scope="module")
def server(trace: Path) -> Iterator[Server]:
    flags = ("--simulated-worker", "--simulated-step-ms", str(STEP_MS), "--record-trace", str(trace))
    with Server(*flags) as server:
        yield server


def test_a_rate_is_kept_and_the_recorded_trace_replayed(server: Server, trace: Path, tmp_path: Path) -> None:
    url = ("serve", "--base-url", server.url)
    file = tmp_path / "first.json"
    rate = ("--request-rate", "40", "--client-processes", "2", "--num-warmups", "0")
    found = result_of(*url, *TRAFFIC, *rate, "--result-filename", str(file), "--save-detailed")
    assert (found["completed"], found["failed"], found["client_processes"]) == (PROMPTS, 0, 2)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (PROMPTS * 40, PROMPTS * OUTPUT)
    assert found["duration"] >= PROMPTS / 40
    # A first token that reaches a busy client late makes the rest look quick.
    assert found["mean_tpot_ms"] >= STEP_MS / 2
    assert found["mean_e2el_ms"] == pytest.approx(found["mean_ttft_ms"] + found["mean_tpot_ms"] * (OUTPUT - 1))
    details = json.loads(file.read_text())
    assert len(details["ttfts"]) == PROMPTS and details["errors"] == [""] * PROMPTS

    def is_recorded() -> bool:
        return trace.exists() and len(trace.read_text().splitlines()) == PROMPTS

    server.wait_until(is_recorded)
    again = result_of(*url, "--dataset-name", "trace", "--dataset-path", str(trace), "--num-warmups", "0")
    assert again["request_rate"] == "trace"
    assert (again["completed"], again["total_output_tokens"]) == (PROMPTS, PROMPTS * OUTPUT)
    # Prompts that a trace records share whole pages alone; their lengths are exact.
    assert again["total_input_tokens"] == found["total_input_tokens"]

    rows = bench("compare", str(file), str(file), "--json").stdout.splitlines()
    assert {json.loads(row)["name"] for row in rows} >= {"request_throughput", "p99_ttft_ms"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openai-chat", "sglang"])
def test_other_routes(server: Server, backend: str) -> None:
    more = ("--tokenizer", "smollm2", "--dataset-name", "random") if backend == "openai-chat" else ()
    found = result_of("serve", "--base-url", server.url + "/v1", "--backend", backend, *TRAFFIC, *more)
    assert (found["completed"], found["total_output_tokens"]) == (PROMPTS, PROMPTS * OUTPUT)


def test_failures_are_counted_by_kind_and_end_with_1(server: Server) -> None:
    long = ("--num-prompts", "3", "--random-input-len", "9000", "--num-warmups", "0")
    finished = bench("serve", "--base-url", server.url, *long)
    assert finished.returncode == 1
    assert "3 failed: HTTP 400" in finished.stdout and "maximum context length" in finished.stdout
    first = bench("serve", "--base-url", server.url, "--random-input-len", "9000")
    assert first.returncode == 1
    assert "the first request" in first.stderr and len(first.stderr.splitlines()) == 1


def test_no_server_is_one_line() -> None:
    finished = bench("serve", "--port", str(free_port()))
    assert finished.returncode == 1
    assert "no engine answers" in finished.stderr and len(finished.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_offline_engine() -> None:
    engine = ("offline", "--simulated-worker", "--simulated-step-ms", "5", *TRAFFIC[2:])
    found = result_of(*engine, "--num-prompts", "9")
    assert (found["completed"], found["total_output_tokens"], found["total_cached_tokens"]) == (9, 9 * OUTPUT, 0)
    assert found["duration"] >= 0.005 * OUTPUT
    batch = result_of(*engine, "--batch-size", "3", "--num-iters", "2", "--num-iters-warmup", "1")
    assert batch["iterations"] == 2 and batch["mean_batch_ms"] >= 5 * OUTPUT
