"""Why a command ends: one line for a pipe, a box for a terminal, lossy or not."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios

import pytest

from quartet.runtime.failure_box import show_failure
from quartet.runtime.output import STDERR, lossy_output

CAUSE = "--port: 70000 is not allowed, it must be at most 65535, which is the largest"


def test_a_pipe_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_failure(CAUSE, "the traceback is in /tmp/x")
    assert capsys.readouterr().err == f"quartet: {CAUSE}; the traceback is in /tmp/x\n"


@pytest.mark.parametrize("is_lossy", [False, True])
def test_a_terminal_gets_a_box(monkeypatch: pytest.MonkeyPatch, is_lossy: bool) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    kept = os.dup(STDERR)
    os.dup2(follower, STDERR)
    try:
        with open(STDERR, "w", closefd=False) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            if is_lossy:
                with lossy_output(STDERR):
                    show_failure(CAUSE)
            else:
                show_failure(CAUSE)
    finally:
        os.dup2(kept, STDERR)
        os.close(follower)
        os.close(kept)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(leader, 1 << 16).decode())
    os.close(leader)
    lines = shown.splitlines()
    assert "╭─ quartet cannot go on" in shown and len(lines) == 4
    assert "--port: 70000 is not allowed" in lines[1] and "the largest" in lines[2]
