"""A child process that works on what others have written, and may die of it: both sides of it.

The kernel ends the child by a timer of its processor time, which no operation can hold off, and bounds its memory. It
dies with the thread that started it, and with its parent.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import IO

import msgspec

from quartet.runtime.lifetime import depend_on_parent, stop_signals_blocked
from tokenizer_proc.child_frames import read, write
from tokenizer_proc.memory_limit import limit_memory

TIMEOUT_S = 60.0
"""A child that does not answer although it uses no processor time is stopped, by a debugger for example."""


class Child:
    """The parent's side: a process that answers one request at a time.

    Args:
        module: what it runs; see `serve`.
    """

    def __init__(self, module: str) -> None:
        command = [sys.executable, "-m", module, str(os.getpid())]
        with stop_signals_blocked():
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, request: msgspec.Struct, timeout_s: float = TIMEOUT_S) -> bytes | None:
        """Return the answer, or None if the child has died; one that is silent for too long is killed.

        Raises RecursionError for a request that is nested too deeply.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            write(self._process.stdin, request)
        except OSError:
            return None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self._process.kill()
        return read(self._process.stdout)

    def close(self) -> None:
        """End the child, whatever it does."""
        self._process.kill()
        self.reap()

    def reap(self) -> int:
        """Return the exit code of a child that has died, and close its pipes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdout.close()
        # What it has not read cannot be flushed.
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        return self._process.wait()


def serve(spare_memory_bytes: int, answer: Callable[[bytes], msgspec.Struct]) -> None:
    """Answer requests until the pipe ends; the child's side, for its main module."""
    depend_on_parent(int(sys.argv[1]))
    limit_memory(spare_memory_bytes)
    serve_pipes(sys.stdin.buffer, sys.stdout.buffer, answer)


def serve_pipes(requests: IO[bytes], answers: IO[bytes], answer: Callable[[bytes], msgspec.Struct]) -> None:
    """Answer what comes on one pipe to the other."""
    while (data := read(requests)) is not None:
        write(answers, answer(data))


@contextlib.contextmanager
def ended_after(cpu_s: float) -> Iterator[None]:
    """Have the kernel end this process once the block has used so many seconds of processor time."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
