"""Deadlines of first tokens: a request without any output by then is of no use to its client. Sans-IO."""

import heapq
from collections.abc import Mapping

from quartet.client.journal import Journal
from quartet.client.request import Listener
from quartet.wire.errors import RequestError


def too_late() -> RequestError:
    """Return the error of such a request."""
    return RequestError(408, "deadline_exceeded", "No output has come by the deadline of the first token.")


class FirstTokens:
    """Requests whose first token has a deadline; one that has output or has ended is passed over when it is due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Listener]] = []
        self._last = 0

    def add(self, listener: Listener, due_s: float) -> None:
        """Watch a request."""
        self._last += 1
        heapq.heappush(self._due, (due_s, self._last, listener))

    def next_deadline(self) -> float | None:
        """Return when a request must be looked at next."""
        return self._due[0][0] if self._due else None

    def late(self, now: float, journal: Journal[Listener], jobs: Mapping[int, int]) -> list[Listener]:
        """Return the requests that are due and wait: to be tokenized (`jobs`, by listener), or for every choice."""
        found = []
        while self._due and self._due[0][0] <= now:
            _, _, listener = heapq.heappop(self._due)
            keys = [(listener.rid, choice) for choice in range(listener.num_choices)]
            entries = [journal.entries.get(key) for key in keys]
            waits = all(one is not None and one.owner is listener and not one.outputs for one in entries)
            if waits or id(listener) in jobs:
                found.append(listener)
        return found
