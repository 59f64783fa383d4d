"""Standard outputs that cannot be written: every write fails, or blocks for ever."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

SINKS = ("full disk", "closed pipe", "stuck pipe", "hung-up terminal")


@contextmanager
def broken_sink(name: str) -> Iterator[int]:
    """Open the sink of that name; gives its descriptor."""
    descriptor, close = _OPEN[name]()
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        close()


def sink_or_none(name: str) -> AbstractContextManager[int | None]:
    """Open the sink of that name; None for any other name."""
    return broken_sink(name) if name in SINKS else nullcontext()


def _full_disk() -> tuple[int, Callable[[], None]]:
    return os.open("/dev/full", os.O_WRONLY), lambda: None


def _closed_pipe() -> tuple[int, Callable[[], None]]:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end, lambda: None


def _stuck_pipe() -> tuple[int, Callable[[], None]]:
    """A pipe that is full and that no reader empties."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    os.set_blocking(write_end, True)
    return write_end, lambda: os.close(read_end)


def _hung_up_terminal() -> tuple[int, Callable[[], None]]:
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs, lambda: None


_OPEN = dict(zip(SINKS, (_full_disk, _closed_pipe, _stuck_pipe, _hung_up_terminal), strict=True))
