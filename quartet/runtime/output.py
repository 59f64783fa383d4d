"""Standard output and error that neither fail nor block: what cannot be written is dropped.

A full disk, a closed pipe or a reader that has stopped must not keep a launch from acting. Inside `lossy_output` both
descriptors are pipes, which child processes inherit. One thread empties each pipe at all times, another writes to the
true descriptor. Nothing in the process or its children waits for the second.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDIN, STDOUT, STDERR = 0, 1, 2
READ_BYTES = 1 << 16
PENDING_BYTES = 1 << 20
"""How much a slow reader may be behind before output is dropped."""
FLUSH_S = 1.0
"""How long the end of the block waits for a slow reader."""


_true_descriptors: dict[int, int] = {}
"""Where the output of each lossy descriptor goes."""


def terminal_columns(descriptor: int) -> int:
    """Return the width of the terminal that a descriptor's output goes to, 0 if it goes elsewhere."""
    try:
        return os.get_terminal_size(_true_descriptors.get(descriptor, descriptor)).columns
    except OSError:
        return 0


@contextmanager
def lossy_output(*descriptors: int) -> Iterator[None]:
    """Make the descriptors lossy inside the block, e.g. STDOUT and STDERR; what is written there is in order."""
    open_missing()
    relays = [_Relay(descriptor) for descriptor in descriptors]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        for relay in relays:
            relay.close()


def write_line(text: str, descriptor: int = STDERR) -> None:
    """Write one line, without a buffer that a later flush could fail on; an error drops the line."""
    with suppress(OSError):
        os.write(descriptor, f"{text}\n".encode(errors="backslashreplace"))


def discard(descriptor: int) -> None:
    """Drop all further output: what Python has buffered would fail again when it is flushed at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def open_missing() -> None:
    """Open a standard descriptor that is closed: the next file or socket would get its number, and the output.

    It reads as empty, and what is written there is dropped.
    """
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python leaves out the stream of a closed descriptor, and `print` then takes the other one.
    sys.stdin = sys.stdin or open(STDIN, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(STDOUT, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(STDERR, "w", closefd=False)  # noqa: SIM115


class _Relay:
    """One descriptor while it is a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sink = _true_descriptors[descriptor] = os.dup(descriptor)
        self._pending = bytearray()
        self._dropped_bytes = 0
        self._is_over = False
        self._changed = threading.Condition()
        read_end, write_end = os.pipe()
        os.dup2(write_end, descriptor)
        os.close(write_end)
        threading.Thread(target=self._empty, args=(read_end,), daemon=True).start()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def _empty(self, read_end: int) -> None:
        """Empty the pipe. Runs in its thread."""
        while data := os.read(read_end, READ_BYTES):
            with self._changed:
                if len(self._pending) + len(data) > PENDING_BYTES:
                    self._dropped_bytes += len(data)
                else:
                    self._pending += data
                    self._changed.notify()
        os.close(read_end)
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def _write(self) -> None:
        """Write what is pending, however long that takes. Runs in its thread."""
        while data := self._take():
            with suppress(OSError):
                while data:
                    data = data[os.write(self._sink, data) :]
        os.close(self._sink)

    def _take(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._is_over)
            data = bytes(self._pending)
            if self._dropped_bytes:
                data += f"\n[{self._dropped_bytes} bytes of output were dropped]\n".encode()
            self._pending.clear()
            self._dropped_bytes = 0
        return data

    def close(self) -> None:
        """Put the true descriptor back, and wait a little for what is left."""
        os.dup2(self._sink, self._descriptor)
        del _true_descriptors[self._descriptor]
        self._writer.join(FLUSH_S)
