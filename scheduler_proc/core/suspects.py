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

import collections
import hashlib
from collections.abc import Collection, Iterable

import msgspec

from quartet.wire.errors import RequestError
from quartet.wire.frames import SamplingParams, Submit
from scheduler_proc.core.request import Request
from scheduler_proc.core.suspicion import Suspicion

MAX_FAILED_STEPS = 3
KILLS_ON_TRIAL = 2
"""Deaths by SIGKILL of one on trial before it is at fault: an operator or the kernel's OOM killer may have sent it. One
more for each request that was killed on trial and cleared later, which proves that such kills come from outside."""
REFUSED_S = 600.0
MOST_REFUSED = 1000


class Suspects:
    """The requests under suspicion, and the fingerprints of those found at fault."""

    def __init__(self) -> None:
        self._open: list[Request] = []
        self._kills_from_outside = 0
        self._refused: collections.OrderedDict[bytes, tuple[float, float]] = collections.OrderedDict()
        """Fingerprint to (refused until, for how many seconds)."""

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

    # Requests at fault

    def refuse(self, request: Request, now: float) -> float:
        """Refuse requests like this one from here on; returns for how many seconds, twice as long as the last time."""
        key = _fingerprint(request.prompt_key, request.params)
        _, last_s = self._refused.pop(key, (0.0, REFUSED_S / 2))
        self._refused[key] = (now + 2 * last_s, 2 * last_s)
        if len(self._refused) > MOST_REFUSED:
            self._refused.popitem(last=False)
        return 2 * last_s

    def check(self, submit: Submit, now: float) -> None:
        """Raise RequestError for a new request like one that was found at fault."""
        if not self._refused:
            return
        until_s, _ = self._refused.get(_fingerprint(submit.prompt_ids, submit.params), (0.0, 0.0))
        if now < until_s:
            message = f"A request like this one has ended the worker; it is refused for another {until_s - now:.0f} s."
            raise RequestError(422, "request_quarantined", message)


def _turn(request: Request) -> tuple[int, int]:
    """Return what sorts the queue. Of suspects on trial the one with the fewest deaths comes first, so that kills from
    outside do not add up for one of them."""
    suspicion = request.suspicion
    if suspicion is None or not suspicion.deaths:
        return 2, 0
    return int(suspicion.needs_trial), suspicion.deaths_on_trial


def _fingerprint(prompt: bytes, params: SamplingParams) -> bytes:
    """Return a hash of what a request makes the worker compute, whatever its seed and length."""
    alike = msgspec.structs.replace(params, seed=0, max_new_tokens=None)
    return hashlib.blake2b(prompt + msgspec.msgpack.encode(alike), digest_size=16).digest()
