"""How fast requests leave the queue, as one api process sees it, and from that when a retry is worthwhile."""

import collections
from collections.abc import Callable

from quartet.runtime.clock import Clock

WINDOW_S = 10
LEAST_WINDOW_S = 0.1
LEAST_S, MOST_S = 1.0, 60.0
JITTER = 0.5
"""An estimate is raised by up to this share of itself."""


class DrainRate:
    """Counts the choices that have started in each of the last WINDOW_S seconds.

    Args:
        clock: of the process.
        jitter: returns a number from 0 to 1.
    """

    def __init__(self, clock: Clock, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self._started: collections.deque[tuple[int, int]] = collections.deque()
        self._since_s = clock.now()
        self._last_s = self._since_s

    def begin(self) -> None:
        """The queue has been empty until this moment."""
        self._since_s = self._last_s = self._clock.now()
        self._started.clear()

    def note(self, choices: int) -> None:
        """Choices have left the queue and run."""
        self._last_s = self._clock.now()
        second = int(self._last_s)
        count = self._started.pop()[1] if self._started and self._started[-1][0] == second else 0
        self._started.append((second, count + choices))
        self._forget(second)

    def seconds_to_drain(self, waiting: int) -> float:
        """Return after how long `waiting` choices will have left the queue: LEAST_S to MOST_S, with jitter.

        While none leaves, it is as long as none has left.
        """
        now = self._clock.now()
        self._forget(int(now))
        started = sum(count for _, count in self._started)
        window_s = min(float(WINDOW_S), max(LEAST_WINDOW_S, now - self._since_s))
        estimate_s = waiting * window_s / started if started else now - self._last_s
        return min(MOST_S, max(LEAST_S, estimate_s) * (1.0 + JITTER * self._jitter()))

    def _forget(self, second: int) -> None:
        while self._started and self._started[0][0] <= second - WINDOW_S:
            self._started.popleft()
