"""Deadlines of requests, for their first token and for the whole, as the api process keeps them. Sans-IO.

The scheduler ends a request at its deadline, too; here it ends also while no scheduler or worker is there.
"""

import heapq
from collections.abc import Mapping

from quartet.client.journal import Journal
from quartet.client.request import GenerateRequest, Listener
from quartet.wire.errors import RequestError

SPARE_S = 0.5
"""What the scheduler gets beyond the deadline of the whole request: it sends the text that it holds back."""

WHOLE = "The request's deadline has passed."
FIRST_TOKEN = "No output has come by the deadline of the first token."


class Deadlines:
    """Requests that have a deadline; one that has ended, or has its first token, is passed over when it is due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, bool, Listener]] = []
        self._last = 0

    def add(self, request: GenerateRequest, listener: Listener, now: float) -> None:
        """Watch a request that begins."""
        if request.first_token_s is not None:
            self._push(now + request.first_token_s, True, listener)
        if request.deadline_s is not None:
            self._push(now + request.deadline_s + SPARE_S, False, listener)

    def _push(self, due_s: float, is_first: bool, listener: Listener) -> None:
        self._last += 1
        heapq.heappush(self._due, (due_s, self._last, is_first, listener))

    def next(self) -> float | None:
        """Return when a request must be looked at next."""
        return self._due[0][0] if self._due else None

    def passed(
        self, now: float, journal: Journal[Listener], jobs: Mapping[int, int]
    ) -> list[tuple[Listener, RequestError]]:
        """Return the requests that are due, and their errors. `jobs` are those being tokenized, by listener."""
        found = []
        while self._due and self._due[0][0] <= now:
            _, _, is_first, listener = heapq.heappop(self._due)
            keys = [(listener.rid, choice) for choice in range(listener.num_choices)]
            entries = [journal.entries.get(key) for key in keys]
            live = [one for one in entries if one is not None and one.owner is listener]
            is_silent = len(live) == len(keys) and not any(one.outputs for one in live)
            if id(listener) in jobs or (is_silent if is_first else live):
                what = FIRST_TOKEN if is_first else WHOLE
                found.append((listener, RequestError(408, "deadline_exceeded", what)))
        return found
