"""Retraction that keeps KV: who gives way, who comes back first, and when others may begin (rules RET-19 to RET-21)."""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.lease import Lease
from scheduler_proc.core.radix_node import Namespace
from scheduler_proc.core.request import Request, RequestState

MOST_RETRACTIONS = 3
"""Retractions after which a request gives way no more, as long as there is another."""


STEPS_AHEAD = 4
"""How many times retract_decode_steps have to be covered when a request begins."""


class KeptKv(Protocol):
    """What the guard needs to know of the KV cache."""

    def reachable_tokens(self) -> int:
        """avail + evict."""
        ...

    def sole_tokens(self, lease: Lease) -> int:
        """Return the tokens that come back when a lease ends."""
        ...

    def touch(self, key: bytes, namespace: Namespace) -> None:
        """Count the cached prefix of `key` as just used."""
        ...


class ThrashGuard:
    """Whom a shortage of KV takes, and what has to be free for requests that have not begun.

    Args:
        config: scheduling settings; without retraction_keeps_kv it holds none back.
        kv: what requests hold of it.
    """

    def __init__(self, config: SchedulerConfig, kv: KeptKv) -> None:
        self.keeps_kv = config.retraction_keeps_kv
        self._steps = config.retract_decode_steps
        self._steps_ahead = STEPS_AHEAD * config.retract_decode_steps
        self._kv = kv
        self._kept: list[Request] = []

    def _waiting(self) -> list[Request]:
        """Return the retracted requests that are not back yet."""
        if self._kept:
            self._kept = [one for one in self._kept if one.state is RequestState.WAITING]
        return self._kept

    def pick(self, rows: Sequence[Request], by_priority: bool) -> Request:
        """Return the request to retract (RET-20): with KV that is evicted only as far as it is needed, the most tokens
        freed per token to recompute are those of the request that frees the most; among equals the latest."""
        position = min(
            range(len(rows)),
            key=lambda at: (
                self._immunity(rows[at]),
                -rows[at].urgency if by_priority else 0,
                -self._kv.sole_tokens(rows[at].lease),
                -at,
            ),
        )
        return rows[position]

    def _immunity(self, request: Request) -> int:
        """Return 0 for a request that may give way, more for one that does so only if all others are immune, too."""
        if request.timeline.retractions >= MOST_RETRACTIONS:
            return 2
        is_back = request.timeline.retractions > 0
        return int(is_back and request.launched - request.launched_at_entry < self._steps)

    def note(self, victim: Request) -> None:
        """A request was retracted and has KV in the tree."""
        if self.keeps_kv:
            self._kept.append(victim)

    def refresh(self) -> None:
        """Count what retracted requests have in the tree as just used: under lru all else goes before it (RET-19)."""
        for one in self._waiting():
            self._kv.touch(one.key(), one.namespace)

    def returning_first(self, candidates: Iterable[Request]) -> Iterable[Request]:
        """Return the candidates of a pass in their order; but retracted ones first, each among the equally urgent, and
        those retracted most often before all (RET-21)."""
        if not self._waiting():
            return candidates
        return sorted(candidates, key=_return_order)

    def holds_back(self, request: Request, running: Collection[Request]) -> bool:
        """Say whether a candidate may not be admitted now, since those that run may need its place (RET-21)."""
        if not self.keeps_kv or request.timeline.retractions:
            return False
        room = self._kv.reachable_tokens() - request.uncomputed_tokens
        if not self._waiting() and (not running or room >= self._steps_ahead * (len(running) + 1)):
            return False
        # One that may preempt others takes their place instead.
        return not any(one.urgency > request.urgency for one in running)


def _return_order(request: Request) -> tuple[int, int]:
    retractions = request.timeline.retractions
    return request.urgency, -min(retractions, 1) - (retractions >= MOST_RETRACTIONS)
