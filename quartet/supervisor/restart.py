"""When a dead process is started again (faults R12). Pure: time is an argument."""

from typing import NamedTuple

BACKOFF_S = (0.0, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
BACKOFF_WINDOW_S = 60.0
"""Deaths that delay the next start: however often a process dies, it is started about eight times a minute at most."""
USELESS_WINDOW_S = 600.0
"""Deaths in a row that count towards giving up."""


class Death(NamedTuple):
    """The end of one incarnation. It was useful if it had finished a step or job after it was ready."""

    time_s: float
    epoch: int
    was_useful: bool


class RestartPolicy:
    """The deaths of one process and the delay before each restart.

    Args:
        limit: useless deaths in a row that are allowed within USELESS_WINDOW_S.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._deaths: list[Death] = []

    def on_death(self, now: float, epoch: int, was_useful: bool) -> float | None:
        """Return how long to wait before the next start, or None to give up. Useful deaths only delay it."""
        last_useful = max((n for n, death in enumerate(self._deaths) if death.was_useful), default=-1)
        recent = [death for death in self._deaths if now - death.time_s < BACKOFF_WINDOW_S]
        in_a_row = [death for death in self._deaths[last_useful + 1 :] if now - death.time_s < USELESS_WINDOW_S]
        if not was_useful and len(in_a_row) >= self._limit:
            return None
        self._deaths = [death for death in self._deaths if now - death.time_s < USELESS_WINDOW_S]
        self._deaths.append(Death(now, epoch, was_useful))
        return BACKOFF_S[min(len(recent), len(BACKOFF_S) - 1)]

    def forgive(self, epoch: int) -> None:
        """Do not count the death of one incarnation: it is pinned on a request that is quarantined."""
        self._deaths = [death for death in self._deaths if death.epoch != epoch]
