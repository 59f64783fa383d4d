"""Lossy output: what is written arrives as long as it can be written, and is dropped otherwise."""

import os
import subprocess
import sys
import time

import pytest

from quartet.runtime.output import STDOUT, lossy_output, write_line
from tests.support.sinks import SINKS, broken_sink

FLOOD = """
import os, sys, time
from quartet.runtime.output import lossy_output
with lossy_output(1):
    for number in range(200_000):
        os.write(1, b"%099d\\n" % number)
    print("written", file=sys.stderr)
"""
CHILDREN = """
import subprocess, sys
from quartet.runtime.output import lossy_output
with lossy_output(1, 2):
    print("mine", flush=True)
    subprocess.run([sys.executable, "-c", "print('a child'); raise SystemExit('an error')"])
    print("buffered")
print("afterwards")
"""


def test_all_that_is_written_arrives_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    with lossy_output(STDOUT):
        for number in range(50_000):
            os.write(STDOUT, b"%d\n" % number)
    os.write(STDOUT, b"afterwards\n")
    assert capfd.readouterr().out.split("\n") == [*map(str, range(50_000)), "afterwards", ""]


def test_child_processes_write_there_too() -> None:
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "mine\na child\nbuffered\nafterwards\n" and done.stderr == "an error\n"


def test_a_flood_that_is_not_read_is_dropped_and_the_rest_is_in_order() -> None:
    with subprocess.Popen([sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.readline() == b"written\n"
        lines = process.stdout.read().splitlines()
    numbers = [int(line) for line in lines if len(line) == 99]
    assert numbers == sorted(numbers) and numbers[:10_000] == list(range(10_000))
    assert any(line.endswith(b"bytes of output were dropped]") for line in lines)


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_that_cannot_be_written_costs_neither_the_exit_code_nor_much_time(name: str) -> None:
    script = "import sys\nfrom quartet.runtime.output import lossy_output\nwith lossy_output(1, 2):\n"
    script += "    print('x' * 10**6)\n    print('y', file=sys.stderr)\n    sys.exit(7)"
    started = time.monotonic()
    with broken_sink(name) as sink:
        assert subprocess.run([sys.executable, "-c", script], stdout=sink, stderr=sink, timeout=30).returncode == 7
    assert time.monotonic() - started < 5


def test_closed_descriptors_are_given_to_no_file() -> None:
    script = "import os, sys\nfrom quartet.runtime.output import lossy_output\nwith lossy_output(1, 2):\n"
    script += "    print('nowhere', flush=True)\n    print('nowhere', file=sys.stderr)\n"
    script += "    numbers = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\nos._exit(0 if numbers > 2 else 1)"
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script, os.devnull]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name in SINKS if name != "stuck pipe"])
def test_a_line_that_cannot_be_written_is_no_error(name: str) -> None:
    with broken_sink(name) as sink:
        write_line("lost", sink)


def test_a_line_may_hold_what_is_not_text(capfd: pytest.CaptureFixture[str]) -> None:
    write_line("caf\u00e9 \udcff", STDOUT)
    assert capfd.readouterr().out == "caf\u00e9 \\udcff\n"
