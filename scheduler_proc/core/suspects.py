"""Which requests may be what ends the worker or fails a step, and which are refused for it (faults R13).

A worker that dies with steps in flight makes everything on board suspect. Suspects run again, ahead of all others:

    first death    together; those without any output only after the rest is cleared, and then one at a time, since
                   most requests that end a worker do so in their first step
    second death   one at a time: on trial
    on trial       the death of the worker is the fault of the one suspect on trial, which is quarantined

A suspect is cleared when it has got past the rows that were in flight at the death. Cleared requests stay on board
during a trial; requests that were never suspected wait until it is over, because one of them could be at fault, too.
A failed step is held against requests separately: what was on board of two runs without any company.
"""

from collections.abc import Collection, Iterable

from quartet.quarantine import Quarantine
from scheduler_proc.core.request import Request
from scheduler_proc.core.suspicion import Suspicion

MAX_FAILED_STEPS = 3
KILLS_ON_TRIAL = 2
"""Deaths by SIGKILL of one on trial before it is at fault: an operator or the kernel's OOM killer may have sent it. One
more for each request that was killed on trial and cleared later, which proves that such kills come from outside."""


class Suspects:
    """The requests under suspicion; `quarantine` refuses those found at fault."""

    def __init__(self) -> None:
        self._open: list[Request] = []
        self._kills_from_outside = 0
        self.quarantine = Quarantine()

    # Faults

    def on_failed_step(self, on_board: Iterable[Request]) -> list[Request]:
        """A step has failed; returns the requests that are at fault."""
        at_fault = []
        for request in on_board:
            suspicion = self._suspicion(request)
            suspicion.failed_steps += 1
            if suspicion.failed_steps >= MAX_FAILED_STEPS:
                at_fault.append(request)
        return at_fault

    def on_death(self, on_board: Collection[Request], was_killed: bool) -> list[Request]:
        """The worker has died with steps in flight; returns the requests that are at fault.

        Args:
            was_killed: by a SIGKILL that the supervisor did not send.
        """
        on_trial = [request for request in on_board if request.suspicion and request.suspicion.needs_trial]
        kills = KILLS_ON_TRIAL + self._kills_from_outside
        at_fault = []
        for request in on_trial:
            suspicion = self._suspicion(request)
            suspicion.deaths_on_trial += 1
            if len(on_trial) == 1 and suspicion.deaths_on_trial >= (kills if was_killed else 1):
                at_fault.append(request)
        for request in on_board if not on_trial else ():
            suspicion = self._suspicion(request)
            suspicion.deaths += 1
            suspicion.had_no_output = not request.output_ids
            suspicion.cleared_at = max(request.launched, len(request.output_ids) + 1)
        return at_fault

    def _suspicion(self, request: Request) -> Suspicion:
        if request.suspicion is None:
            request.suspicion = Suspicion()
            self._open.append(request)
        return request.suspicion

    def note_output(self, request: Request) -> None:
        """A request under suspicion has one more output."""
        suspicion = request.suspicion
        if suspicion is not None and len(request.output_ids) >= suspicion.cleared_at:
            self._kills_from_outside += bool(suspicion.deaths_on_trial)
            request.suspicion = None

    # Trials

    @property
    def are_open(self) -> bool:
        """Whether any live request is under suspicion."""
        if self._open:
            self._open = [request for request in self._open if request.suspicion and not request.is_done]
            if not self._open:
                self._kills_from_outside = 0
        return bool(self._open)

    def suspects_first(self, waiting: Iterable[Request]) -> list[Request]:
        """Return the queue in the order in which it may enter: those to run together, those on trial, all others."""
        return sorted(waiting, key=_turn) if self.are_open else list(waiting)

    def must_wait(self, request: Request, on_board: Collection[Request]) -> bool:
        """Say whether a request must not join those on board."""
        if not self.are_open:
            return False
        others = [other.suspicion for other in on_board if other.suspicion is not None]
        suspicion = request.suspicion
        if any(other.runs_alone for other in others) or (suspicion and suspicion.runs_alone and on_board):
            return True
        if any(other.needs_trial for other in others):
            return True
        if suspicion is None:
            return any(other.suspicion.deaths for other in self._open if other.suspicion)
        return suspicion.needs_trial and bool(others)


def _turn(request: Request) -> tuple[int, int]:
    """Return what sorts the queue. Of suspects on trial the one with the fewest deaths comes first, so that kills from
    outside do not add up for one of them."""
    suspicion = request.suspicion
    if suspicion is None or not suspicion.deaths:
        return 2, 0
    return int(suspicion.needs_trial), suspicion.deaths_on_trial
