"""Commands whose output cannot be written: one line and an exit code, no traceback."""

import os
import subprocess
import sys

import pytest

from tests.support.sinks import broken_sink

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
BUFFERING = [{}, {"PYTHONUNBUFFERED": "1"}]
SIMULATE = ["simulate", "--scenario", "steady", "--requests", "3", "--json"]


@pytest.mark.parametrize("buffering", BUFFERING)
@pytest.mark.parametrize(
    ("sink", "shown"), [("full disk", "quartet: [Errno 28] No space left on device\n"), ("closed pipe", "")]
)
def test_output_that_cannot_be_written_is_one_line(sink: str, shown: str, buffering: dict[str, str]) -> None:
    command = [sys.executable, "-m", "quartet.cli.main", *SIMULATE]
    with broken_sink(sink) as descriptor:
        done = subprocess.run(
            command,
            stdout=descriptor,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**ENVIRONMENT, **buffering},
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, shown)


@pytest.mark.parametrize("buffering", BUFFERING)
@pytest.mark.parametrize(
    ("argv", "code"), [(["ps", "--ulr"], 2), (["fly"], 2), (["ps", "--url", "localhost"], 1), (["serve", "/no"], 3)]
)
def test_a_complaint_that_cannot_be_written_changes_no_exit_code(
    argv: list[str], code: int, buffering: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "quartet.cli.main", *argv]
    with broken_sink("full disk") as descriptor:
        done = subprocess.run(
            command, stdout=descriptor, stderr=descriptor, timeout=60, env={**ENVIRONMENT, **buffering}, check=False
        )
    assert done.returncode == code


@pytest.mark.parametrize("argv", [["ps"], ["chat", "hello"]])
def test_closed_streams_are_no_traceback(argv: list[str]) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-m", "quartet.cli.main", *argv]
    done = subprocess.run(
        [*command, "--url", "127.0.0.1:1"], stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("quartet: no engine answers at http://127.0.0.1:1")
