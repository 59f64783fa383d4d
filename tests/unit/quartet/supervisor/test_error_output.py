"""The standard error of a child: passed on, but for the traceback of one that has never been ready."""

import os
from collections.abc import Iterator

import pytest

from quartet.supervisor.error_output import MAX_HELD_BYTES, ErrorOutput

TRACEBACK = "Traceback (most recent call last):\n  File x\nZeroDivisionError: made to fail\n"
GROUP = "  + Exception Group Traceback (most recent call last):\n  |   File x\n  | ExceptionGroup: one\n"


@pytest.fixture(params=[True, False])
def holds(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def errors(holds: bool) -> Iterator[ErrorOutput]:
    made = ErrorOutput(holds_traceback=holds)
    yield made
    made.close()


def write(errors: ErrorOutput, *parts: str) -> None:
    with errors.write_end() as descriptor:
        for part in parts:
            os.write(descriptor, part.encode())
            while errors.forward(1.0):
                pass


@pytest.mark.parametrize("traceback", [TRACEBACK, GROUP])
def test_a_traceback_is_held_until_release(
    errors: ErrorOutput, holds: bool, traceback: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write(errors, "a warning\n", f"another\n{traceback}", "and a line\n")
    held = f"{traceback}and a line\n" if holds else ""
    assert errors.held == held
    assert capfd.readouterr().err == (
        "a warning\nanother\n" if holds else f"a warning\nanother\n{traceback}and a line\n"
    )
    assert errors.last_words(1.5) == "and a line"
    errors.release()
    assert capfd.readouterr().err == held and errors.held == ""


def test_what_is_held_is_bounded(errors: ErrorOutput, holds: bool) -> None:
    write(errors, TRACEBACK, *["x" * 1000 for _ in range(100)], "the end")
    assert len(errors.held) == (MAX_HELD_BYTES if holds else 0) and (errors.held.endswith("the end") or not holds)
