"""How long a child process lives: as long as its supervisor, which alone is ended by a signal of the user.

Terminals, service managers and `timeout` signal a whole process group. The children ignore that, so that the
supervisor can drain them in order. Imports nothing heavy.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def stop_signals() -> list[signal.Signals]:
    """Return the signals that are to end this launch: SIGHUP not under nohup, which has it ignored."""
    return [
        number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]


@contextmanager
def stop_signals_exit() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block by SystemExit(0), until a loop handles them, so that it cleans up."""
    numbers = [number for number in stop_signals() if number != signal.SIGINT]
    before = {number: signal.signal(number, _exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: object) -> None:
    sys.exit(0)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the signals inside the block: a child that is started there inherits that, until it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def depend_on_parent(parent_pid: int) -> None:
    """Ignore the stop signals, and have the kernel kill this process when its parent dies.

    Exits at once if the parent is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
