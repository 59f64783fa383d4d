"""What is sent again after the death of a process, and when, so that the request that ends it is found (faults R13).

What a dead process held is suspect. It is sent again together; when the process dies again before the suspects have
got past the point of the death, one at a time. The one on trial when the process dies then is at fault. Those that
have passed stay with the process, and new ones wait until the trials are over. scheduler_proc/core/suspects.py does
the same for the worker. Sans-IO.
"""

import collections
from collections.abc import Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from quartet.wire.frames import LastEnd

Key = TypeVar("Key")

SUSPICION = {LastEnd.KILLED: 1, LastEnd.CRASHED: 2}
"""What a death adds to the suspicion of what the process held."""
MARGIN = 4
"""How much further than at the death one must get: what was on its way then has been lost."""


class Verdict(NamedTuple, Generic[Key]):
    """What follows from a death: what to send again, and what is at fault."""

    again: list[Key]
    at_fault: list[Key]


class Trials(Generic[Key]):
    """Trials of what the processes of one kind hold.

    Args:
        together: crashes in a row after which everything is sent again together; two kills are one crash.
        kills: of one on trial before it is at fault; it is after one crash. One more for each that was killed on trial
            and passed later, which proves that such kills come from outside.
    """

    def __init__(self, together: int, kills: int) -> None:
        self._together = together
        self._kills = kills
        self._deaths: dict[Key, int] = {}
        self._passes_at: dict[Key, int] = {}
        self._trial_deaths: collections.Counter[Key] = collections.Counter()
        self._kills_from_outside = 0
        self._on_trial: Key | None = None
        self._waiting: collections.deque[Key] = collections.deque()
        self._newcomers: dict[Key, None] = {}

    @property
    def are_open(self) -> bool:
        """Whether anything is suspect."""
        return bool(self._deaths)

    def is_held(self, key: Key) -> bool:
        """Say whether something waits for its trial, or for the end of all trials."""
        return key in self._newcomers or key in self._waiting

    def may_start(self, key: Key) -> bool:
        """Say whether something new may be sent; otherwise it is returned later by one of the other methods."""
        if self._on_trial is None and not self._waiting:
            return True
        self._newcomers[key] = None
        return False

    def on_death(self, held: Mapping[Key, int], how: LastEnd) -> Verdict[Key]:
        """A process has died.

        Args:
            held: what it held, the oldest first, with how far each has got.
            how: how it ended. Before it was ready, it had read nothing of what it held.
        """
        on_board = [key for key in held if not self.is_held(key)]
        if how not in SUSPICION:
            return Verdict(on_board, [])
        if self._on_trial in on_board:
            return self._on_death_of_trial(self._on_trial, on_board, how)
        for key in on_board:
            self._deaths[key] = self._deaths.get(key, 0) + SUSPICION[how]
            self._passes_at[key] = held[key] + MARGIN
        if any(self._deaths[key] > SUSPICION[LastEnd.CRASHED] * self._together for key in on_board):
            self._waiting.extend(on_board)
            on_board = []
        return Verdict([*on_board, *self._release()], [])

    def _on_death_of_trial(self, key: Key, on_board: Iterable[Key], how: LastEnd) -> Verdict[Key]:
        self._on_trial = None
        self._trial_deaths[key] += 1
        passed = [other for other in on_board if other != key]
        if self._trial_deaths[key] >= (self._kills + self._kills_from_outside if how is LastEnd.KILLED else 1):
            self._forget(key)
            return Verdict([*passed, *self._release()], [key])
        # The others first, so that kills from outside do not add up for one of them.
        self._waiting.append(key)
        return Verdict([*passed, *self._release()], [])

    def note_progress(self, key: Key, progress: int) -> list[Key]:
        """Something has got that far; returns what to send then.

        What waits for its trial has not passed, though output from before the death may still come."""
        if key in self._waiting or progress < self._passes_at.get(key, progress + 1):
            return []
        return self._pass(key)

    def end(self, key: Key) -> list[Key]:
        """Something has ended; returns what to send then. Idempotent."""
        self._newcomers.pop(key, None)
        if key in self._waiting:
            self._waiting.remove(key)
        return self._pass(key) if key in self._deaths else []

    def _pass(self, key: Key) -> list[Key]:
        self._kills_from_outside += key in self._trial_deaths
        self._forget(key)
        if not self._deaths:
            self._kills_from_outside = 0
        if self._on_trial == key:
            self._on_trial = None
        return self._release()

    def _forget(self, key: Key) -> None:
        for known in (self._deaths, self._passes_at, self._trial_deaths):
            known.pop(key, None)

    def _release(self) -> list[Key]:
        """Return what may be sent next: the next on trial, or all that have waited for the end of the trials."""
        if self._on_trial is not None:
            return []
        if self._waiting:
            self._on_trial = self._waiting.popleft()
            return [self._on_trial]
        newcomers, self._newcomers = list(self._newcomers), {}
        return newcomers
