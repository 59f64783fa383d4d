"""One session: what its turns have in common. sessions.py changes it, policies and nodes of the tree refer to it."""

import math
from collections import deque

GAPS_OF_ONE = 8


class Gap:
    """The time from the end of a turn, at `since_s`, to the next; infinite as long as that has not come."""

    __slots__ = ("seconds", "since_s")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.seconds = math.inf


class Session:
    """`served` is the service of its turns so far, `live` counts those that have not ended, `gap` is the one that goes
    on since the last of them, `gaps` has the seconds of the last ones."""

    __slots__ = ("gap", "gaps", "live", "served")

    def __init__(self) -> None:
        self.served = 0
        self.live = 0
        self.gap: Gap | None = None
        self.gaps: deque[float] = deque(maxlen=GAPS_OF_ONE)
