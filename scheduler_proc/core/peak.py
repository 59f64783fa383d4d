"""The most KV that a batch will hold, if each request ends when it is expected to (rule OBS-2).

Source: LightLLM's estimate of the peak. Requests that are sorted by what they may still add, the most first, end from
the last on; when the i-th ends, those before it have grown by as much as it.
"""

from bisect import insort
from collections.abc import Iterable
from typing import Protocol

from scheduler_proc.core.lease import Lease
from scheduler_proc.core.request import Request

State = tuple[int, int]
"""(-b, a): tokens that a request may still add, negated so that sorting puts the most first; tokens it holds once its
prompt is computed."""


class HeldKv(Protocol):
    """What the estimate needs to know of the KV cache."""

    page_size: int

    def reachable_tokens(self) -> int:
        """avail + evict."""
        ...

    def sole_tokens(self, lease: Lease) -> int:
        """Return the tokens that come back when the lease ends."""
        ...


class Expectation(Protocol):
    """How long outputs will be."""

    @property
    def are_enough(self) -> bool:
        """Say whether anything can be expected."""
        ...

    def expected(self, class_name: str, outputs: int, limit: int) -> int:
        """Return how long an output of a tenant that has `outputs` tokens will be, at most `limit`."""
        ...


def peak_of(states: Iterable[State]) -> int:
    """Return the peak of requests given in order, in tokens; 0 for none."""
    peak = held = 0
    for count, (negative_left, occupied) in enumerate(states, 1):
        held += occupied
        peak = max(peak, held - negative_left * count)
    return peak


class PeakEstimate:
    """The batch of one pass, of which `running` are its running requests."""

    def __init__(self, kv: HeldKv, lengths: Expectation, running: Iterable[Request]) -> None:
        self._kv = kv
        self._lengths = lengths
        running = list(running)
        # What is locked now comes back to the pool when its only holder ends, so no admission of the pass changes it.
        self.pool_tokens = kv.reachable_tokens() + sum(kv.sole_tokens(one.lease) for one in running)
        self._by_request = {id(one): self._state_of(one) for one in running}
        self._states = sorted(self._by_request.values())

    def fits(self, candidate: Request, withheld_tokens: int, victims: Iterable[Request] = ()) -> bool:
        """Say whether the batch has room to its end with a candidate whose match is locked, without the victims."""
        states = list(self._states)
        for victim in victims:
            states.remove(self._by_request[id(victim)])
        insort(states, self._state_of(candidate))
        return peak_of(states) <= self.pool_tokens - withheld_tokens

    def add(self, request: Request) -> None:
        """Count a request that the pass admits or continues; call before it gets pages."""
        if id(request) not in self._by_request:
            self._by_request[id(request)] = state = self._state_of(request)
            insort(self._states, state)

    def remove(self, victim: Request) -> None:
        """A running request was preempted."""
        self._states.remove(self._by_request.pop(id(victim)))

    def _state_of(self, request: Request) -> State:
        lease, outputs = request.lease, len(request.output_ids)
        # A page more, since what it adds is rounded up to pages; less what is free in its last one.
        spare = len(lease.pages) * self._kv.page_size - lease.num_computed_tokens - self._kv.page_size
        held = self._kv.sole_tokens(lease) - spare + max(0, request.uncomputed_tokens)
        return outputs - self._lengths.expected(request.namespace[0], outputs, request.max_new_tokens), held
