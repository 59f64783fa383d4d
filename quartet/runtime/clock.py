"""Time as a parameter: the clock the processes use and the one the tests turn by hand."""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic seconds."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean anything."""
        ...


class MonotonicClock:
    """The operating system's monotonic clock."""

    def now(self) -> float:
        """Return monotonic seconds since an arbitrary start."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only by `advance`, for tests and the simulator."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """Return the time last set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move time forward; a negative step is an error because monotonic time never goes back."""
        if seconds < 0:
            raise ValueError(f"cannot move a monotonic clock by {seconds} s")
        self._now_s += seconds

    def advance_to(self, time_s: float) -> None:
        """Move time forward to `time_s` exactly; nothing happens if it has passed already."""
        self._now_s = max(self._now_s, time_s)
