"""A process that can never run again ends the launch: every client gets an error first, the last line is the cause."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server, alive

pytestmark = pytest.mark.e2e
BODY: dict[str, Any] = {"model": "smollm2", "prompt": "Count:", "max_tokens": 3000, "temperature": 0}
SIMULATED = ("--simulated-worker", "--simulated-step-ms", "10", "--restart-limit", "1")
RUN = """
from quartet.runtime.process import run_process
run_process(main)
"""
FATAL = f"""
from quartet.wire.errors import ModelError
async def main(context):
    raise ModelError("the model is damaged")
{RUN}"""
LAST_LINES = {
    "raise ZeroDivisionError('made to fail')": (70, "ended by exit code 1 (ZeroDivisionError: made to fail); it ends"),
    FATAL: (3, "worker-0: the model is damaged"),
    "import os; os._exit(0)": (70, "ended by exit code 0; it ends without work too often; giving up"),
    "import os; os._exit(137)": (70, "ended by exit code 137; it ends"),
    "import os; os.abort()": (70, "ended by signal SIGABRT; it ends"),
}


def replace_worker(folder: Path, program: str) -> None:
    """Have the next workers of a launch in that working directory run a program instead."""
    package = folder / "worker_proc"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(program)


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        pytest.param(program, *ending, marks=() if index < 1 else pytest.mark.slow, id=ending[1])
        for index, (program, ending) in enumerate(LAST_LINES.items())
    ],
)
async def test_clients_are_told_before_the_end(program: str, code: int, words: str, tmp_path: Path) -> None:
    with Server(*SIMULATED, cwd=tmp_path) as server:
        pids = server.processes()
        all_run = asyncio.Event()
        running: list[int] = []

        async def note(answer: Answer) -> None:
            if answer.events == 3:
                running.append(1)
                if len(running) == 4:
                    all_run.set()

        streams = [asyncio.create_task(stream_completion(server.url, BODY, note)) for _ in range(4)]
        whole = asyncio.create_task(asyncio.to_thread(server.post, "/v1/completions", BODY))
        await asyncio.wait_for(all_run.wait(), 20)
        replace_worker(tmp_path, program)
        server.kill("worker-0")
        for answer in await asyncio.gather(*streams):
            assert answer.is_done and answer.finish is None
            assert answer.error is not None and answer.error["code"] == "engine_failed"
        status, body = await whole
        assert (status, body["error"]["code"]) == (503, "engine_failed")
        assert await asyncio.to_thread(server.process.wait, 10) == code
        server._reader.join(5)
        assert words in server.output[-1], server.output[-5:]
        deadline = time.monotonic() + 3
        while (alive(pids) or server.leftovers()) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert alive(pids) == [] and server.leftovers() == []


def serve_to_the_end(folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Run a launch in that working directory that ends by itself."""
    command = [sys.executable, "-m", "quartet.cli.main", "serve", "--simulated-worker", "--port", "0"]
    command += ["--run-dir", str(folder), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


RAISING = {
    "raise ZeroDivisionError('made to fail')": "ended by exit code 1 (ZeroDivisionError: made to fail) before it was",
    f"async def main(context):\n    raise ZeroDivisionError('made to fail')\n{RUN}": "worker-0: ZeroDivisionError: ",
}


@pytest.mark.parametrize("program", RAISING)
def test_an_exception_at_the_first_start_ends_the_launch(tmp_path: Path, program: str) -> None:
    """One line has the cause, and names the file that has the traceback."""
    replace_worker(tmp_path, program)
    finished = serve_to_the_end(tmp_path)
    assert finished.returncode == 70 and "Traceback" not in finished.stderr
    *others, last = finished.stderr.splitlines()
    assert RAISING[program] in last and not any("ended by" in line for line in others)
    (log,) = tmp_path.glob("quartet-*")
    assert last.endswith(f"; the traceback is in {log}") and "worker_proc/__main__.py" in log.read_text()


@pytest.mark.slow
def test_a_traceback_of_the_first_start_is_shown_to_a_debugger(tmp_path: Path) -> None:
    replace_worker(tmp_path, "raise ZeroDivisionError('made to fail')")
    finished = serve_to_the_end(tmp_path, "--log-level", "debug")
    assert finished.returncode == 70 and finished.stderr.count("Traceback") == 1
    assert not list(tmp_path.glob("quartet-*"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 5])
def test_a_worker_that_is_killed_at_each_start_ends_the_launch(tmp_path: Path, limit: int) -> None:
    replace_worker(tmp_path, "import os; os.kill(os.getpid(), 9)")
    finished = serve_to_the_end(tmp_path, "--restart-limit", str(limit))
    assert finished.returncode == 70
    *others, last = finished.stderr.splitlines()
    assert "worker-0" in last and "ended by signal SIGKILL; it ends without work too often" in last
    assert len([line for line in others if "ended by" in line]) == limit
    assert not list(tmp_path.glob("quartet-*"))


@pytest.mark.slow
async def test_a_failure_during_a_drain_ends_the_streams_too(tmp_path: Path) -> None:
    with Server(*SIMULATED, cwd=tmp_path) as server:

        async def fail(answer: Answer) -> None:
            if answer.events == 3:
                server.process.terminate()
                server.wait_until(lambda: server.get("/ready")[0] == 503)
                replace_worker(tmp_path, "raise ZeroDivisionError")
                server.kill("worker-0")

        answer = await stream_completion(server.url, BODY, fail)
        assert answer.is_done and answer.error is not None and answer.error["code"] == "engine_failed"
        assert await asyncio.to_thread(server.process.wait, 10) == 70


@pytest.mark.slow
def test_a_process_that_ends_without_work_after_each_start_is_given_up() -> None:
    """It becomes ready each time, so that only its work tells it from one that runs."""
    env = {"QUARTET_FAILPOINTS": "detok.recv.Open=exit:5"}
    with Server(*SIMULATED, env=env) as server:
        status, body = server.post("/v1/completions", BODY)
        assert (status, body["error"]["code"]) == (503, "engine_failed")
        assert server.process.wait(10) == 70
        server._reader.join(5)
        assert "detok-0" in server.output[-1] and "exit code 5" in server.output[-1]


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 137])
async def test_an_exit_without_a_request_for_it_is_a_death(code: int, tmp_path: Path) -> None:
    faults = f"worker.mid_step=exit:{code},nth=20,once={tmp_path / 'exited'}"
    with Server(*SIMULATED, env={"QUARTET_FAILPOINTS": faults}) as server:
        answer = await stream_completion(server.url, {**BODY, "max_tokens": 60})
        assert answer.is_done and answer.finish == "length"
        assert server.topology()["worker-0"]["restarts"] == 1
        assert any("worker-0" in line and f"ended by exit code {code}" in line for line in server.output)
