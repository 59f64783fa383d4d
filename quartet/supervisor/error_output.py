"""The standard error of one child: passed on to that of the launch; its last line tells why the child has ended.

The traceback of a child that has never been ready is held back: it is for the log, and the last line for the user.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from quartet.runtime.output import READ_BYTES, STDERR

TAIL_BYTES = 4096
MAX_WORDS = 300
TRACEBACK = b"Traceback (most recent call last):"
MAX_HELD_BYTES = 1 << 16
RECENT_S = 2.0
"""What a process wrote earlier than this before its end has another cause."""


class ErrorOutput:
    """A pipe that is the standard error of one child. Raises OSError without descriptors for it.

    Args:
        holds_traceback: whether what follows the first line of a traceback is held until `release`.
    """

    def __init__(self, holds_traceback: bool = False) -> None:
        self.descriptor, self._write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.descriptor, False)
        self._holds_traceback = holds_traceback
        self._held = b""
        self._tail = b""
        self._written_s = 0.0

    @contextmanager
    def write_end(self) -> Iterator[int]:
        """Give the end for the child inside the block, which starts it."""
        try:
            yield self._write_end
        finally:
            os.close(self._write_end)

    def close(self) -> None:
        """Close the end that is read."""
        os.close(self.descriptor)

    def forward(self, now: float) -> bool:
        """Pass on what there is; returns whether more was read and may follow."""
        try:
            data = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return False
        self._tail, self._written_s = (self._tail + data)[-TAIL_BYTES:], now
        if self._holds_traceback:
            data = self._take_traceback(data)
        with suppress(OSError):
            os.write(STDERR, data)
        return True

    def _take_traceback(self, data: bytes) -> bytes:
        """Hold what follows the first line of a traceback; returns what precedes it."""
        shown = b""
        if not self._held:
            found = data.find(TRACEBACK)
            first = len(data) if found < 0 else data.rfind(b"\n", 0, found) + 1
            shown, data = data[:first], data[first:]
        self._held = (self._held + data)[-MAX_HELD_BYTES:]
        return shown

    @property
    def held(self) -> str:
        """The traceback that is held back."""
        return self._held.decode(errors="replace")

    def release(self) -> None:
        """Pass on what is held, and everything that follows."""
        self._holds_traceback = False
        with suppress(OSError):
            os.write(STDERR, self._held)
        self._held = b""

    def last_words(self, now: float) -> str:
        """Return the last line if the child has written it just now, else an empty text.

        Of a Python traceback that is the exception."""
        if now - self._written_s > RECENT_S:
            return ""
        for line in reversed(self._tail.decode(errors="replace").splitlines()):
            # A group of exceptions is drawn with bars.
            words = line.strip(" |+-")
            if words:
                return "".join(one if one.isprintable() else "?" for one in words)[:MAX_WORDS]
        return ""


def cause_of_end(code: int, last_words: str) -> str:
    """Return what ended a process: its exit code (negative for a signal), and its last words if it has any."""
    cause = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    return f"{cause} ({last_words})" if last_words else cause


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
