"""Lines of the log: text and JSON; a reader that has stopped holds nothing up."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from quartet.runtime.logs import JsonLines, TextLines

FLOOD = """
import logging, os, sys
from quartet.runtime.logs import configure_logging
configure_logging("info", "api-0")
for number in range(20_000):
    logging.info("line %d of a log without a reader", number)
print("done", flush=True)
sys.stdin.readline()
logging.info("the last one")
"""


def record(message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    made = logging.getLogger("x").makeRecord("x", logging.WARNING, "f", 1, message, args, None, extra=extra or None)
    made.created = 1_700_000_000.25
    return made


def test_json_lines_carry_the_fields() -> None:
    line = JsonLines("api-0").format(record("%d of %s", 3, 'a"\n', fields={"status": 200}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "warning",
        "process": "api-0",
        "message": '3 of a"\n',
        "status": 200,
    }


def test_json_lines_carry_the_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        made = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    assert json.loads(JsonLines("worker-0").format(made))["exception"].endswith("ValueError: broken")


@pytest.mark.parametrize(("is_coloured", "tag"), [(False, "api-0      "), (True, "\x1b[36mapi-0      \x1b[0m")])
def test_text_lines_have_a_tag(is_coloured: bool, tag: str) -> None:
    assert TextLines("api-0", is_coloured).format(record("hello")).endswith(f" {tag} W hello")


def test_a_reader_that_has_stopped_holds_nothing_up() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FLOOD], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "done\n"
        first = [process.stderr.readline() for _ in range(100)]
        process.stdin.write("\n")
        process.stdin.flush()
        rest = process.stderr.read().splitlines()
    assert all(f"line {number} of" in line for number, line in enumerate(first))
    assert "lines of this log were lost" in rest[-2] and rest[-1].endswith("the last one")
