"""Output that cannot be written keeps nothing from happening: start, restart, hang watch, drain, exit."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.golden.oracles import FOLDER
from tests.support.client import Answer, stream_completion
from tests.support.server import Server
from tests.support.sinks import SINKS, broken_sink
from tests.unit.quartet.checkpoint.gguf_models import write_gguf

pytestmark = pytest.mark.e2e
TINY = str(FOLDER / "models" / "qwen3")
BODY: dict[str, Any] = {"model": "smollm2", "prompt": "Count:", "max_tokens": 150, "temperature": 0}
QUICK = ("full disk", "stuck pipe")
"""One sink whose writes fail, and one whose writes block; the others are tried in the slow tests."""
SIMULATED = ("--simulated-worker", "--simulated-step-ms", "5")


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SINKS])
def sink(request: pytest.FixtureRequest) -> Iterator[int]:
    with broken_sink(request.param) as descriptor:
        yield descriptor


def complete(server: Server) -> int:
    """Return the status of one completion, for which there are 15 s."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=15)
    try:
        connection.request("POST", "/v1/completions", json.dumps({**BODY, "max_tokens": 4}))
        return connection.getresponse().status
    finally:
        connection.close()


def end(server: Server, number: signal.Signals = signal.SIGTERM) -> int:
    server.process.send_signal(number)
    return server.process.wait(10)


async def test_a_life_with_a_death_a_hang_and_a_drain(sink: int) -> None:
    with Server(*SIMULATED, "--hang-timeout", "1", sink=sink) as server:
        for restarts, number in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
            server.kill("worker-0", number)
            assert await asyncio.to_thread(complete, server) == 200
            server.wait_until(lambda count=restarts: server.topology()["worker-0"]["restarts"] == count)

        async def terminate(answer: Answer) -> None:
            if answer.events == 20:
                server.process.send_signal(signal.SIGTERM)

        answer = await stream_completion(server.url, BODY, terminate)
        assert answer.is_done and answer.finish == "length" and answer.error is None
        assert await asyncio.to_thread(server.process.wait, 10) == 0


def test_closed_descriptors_are_no_ones_output() -> None:
    def close() -> None:
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    with Server(*SIMULATED, sink=subprocess.DEVNULL, preexec_fn=close) as server:
        server.kill("worker-0")
        assert complete(server) == 200
        assert end(server) == 0


def test_a_trace_that_cannot_be_written_ends_and_nothing_else() -> None:
    with Server(*SIMULATED, "--record-trace", "/dev/full") as server:
        assert [complete(server) for _ in range(3)] == [200] * 3
        assert server.get("/metrics")[1].count('reason="handler"') == 0
        assert end(server) == 0
    assert [line for line in server.output if "ended by" in line] == []
    assert len([line for line in server.output if "--record-trace /dev/full" in line]) == 1


# All output of a start that ends by itself


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short path, so that it is never too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="qt") as path:
        yield Path(path)


def serve(run_dir: Path, sink: int, *arguments: str, **variables: str) -> int:
    """Run `quartet serve` to its end, in the run directory; returns its exit code."""
    command = [sys.executable, "-m", "quartet.cli.main", "serve", "--run-dir", str(run_dir), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "QUARTET_CACHE_DIR": str(run_dir / "cache"), **variables}
    return subprocess.run(
        command, stdout=sink, stderr=sink, timeout=60, env=environment, cwd=run_dir, check=False
    ).returncode


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--shedule-policy", "fcfs"], 2),
        (["--port", "99999"], 2),
        ([TINY, "--host", "999.0.0.1", "--insecure"], 2),
        (["/no/such/model"], 3),
        (["no-such-owner/no-such-model"], 3),
        ([TINY, "--device", "cpu", "--port", "0", "--record-trace", "/no/such/folder/trace"], 2),
    ],
)
def test_a_refusal_has_its_exit_code(arguments: list[str], code: int, sink: int, run_dir: Path) -> None:
    assert serve(run_dir, sink, *arguments) == code
    assert not list(run_dir.glob("quartet-*"))


def test_a_model_found_broken_by_the_worker_has_its_exit_code(sink: int, run_dir: Path) -> None:
    for file in Path(TINY).iterdir():
        (run_dir / file.name).write_bytes(file.read_bytes()[: -1000 if file.suffix == ".safetensors" else None])
    assert serve(run_dir, sink, str(run_dir), "--device", "cpu", "--port", "0") == 3


def test_a_process_that_dies_at_each_start_is_given_up(sink: int, run_dir: Path) -> None:
    (run_dir / "detok_proc").mkdir()
    (run_dir / "detok_proc" / "__init__.py").write_text("raise ZeroDivisionError")
    code = serve(run_dir, sink, *SIMULATED, "--restart-limit", "1", "--port", "0", PYTHONPATH=str(run_dir))
    assert code == 70


def test_a_model_is_converted(sink: int, tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf")
    cache = {"QUARTET_CACHE_DIR": str(tmp_path / "cache")}
    with Server(str(tmp_path / "toy.gguf"), *SIMULATED, sink=sink, env=cache) as server:
        assert end(server) == 0
