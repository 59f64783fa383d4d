"""Sessions: which requests are turns of one, how much was done for it, and how long its KV is held until the next turn
(rules SES-1 to SES-3).

A turn is recognised by its `session_id`, or else by its prefix, which is the sequence of a turn before. Sources: KV is
held for a time by the cost of computing it again (Continuum, arXiv 2511.02230; InferCept, arXiv 2402.01869); the
session that was served least goes first (Autellix, arXiv 2502.13965).
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.radix_node import Namespace, Node, session_at
from scheduler_proc.core.request import Request
from scheduler_proc.core.session import Gap, Session

UNITS_OF_AN_OUTPUT = 4
"""Service is counted in prompt tokens computed; decoding a token counts for as many as in lpm-aging."""
MOST_NAMED = 4096
MOST_HOLD_S = 60.0
GAPS_OF_ALL, LEAST_OF_ALL, LEAST_OF_ONE = 256, 8, 3
"""Gaps that are kept of all sessions; how many of all, and of a session itself, are believed."""
MARGIN = 1.25
"""KV is held for so many times the gap that is waited for."""
LEAST_USED_SHARE = 0.05


class SessionKv(Protocol):
    """What holding needs of the KV cache."""

    @property
    def capacity_tokens(self) -> int:
        """N."""
        ...

    def reachable_tokens(self) -> int:
        """avail + evict."""
        ...

    def note_session(self, session: Session, key: bytes, namespace: Namespace, until_s: float | None) -> None:
        """Note whose sequence `key` is, and hold its cached prefix until a time, if one is given."""
        ...

    def end_hold(self, session: Session) -> bool:
        """Give up what is held for a session; say whether anything was."""
        ...


class Sessions:
    """The sessions of live requests and of cached sequences. Without an option that needs them none is kept.

    `turns` counts turns after the first, `held_turns` those of them whose KV was held when they were admitted.

    Args:
        config: scheduling settings.
        kv: holds what is kept between turns.
        prefill_s: how long a prompt of so many tokens takes; 0 while that is not known.
    """

    def __init__(self, config: SchedulerConfig, kv: SessionKv, prefill_s: Callable[[int], float]) -> None:
        self._holds_kv = config.radix_eviction_policy == "session"
        self._is_on = self._holds_kv or config.schedule_policy == "session"
        self._kv = kv
        self._prefill_s = prefill_s
        self._named: OrderedDict[tuple[Namespace, str], Session] = OrderedDict()
        self._gaps = {is_named: deque[Gap](maxlen=GAPS_OF_ALL) for is_named in (True, False)}
        self.turns = self.held_turns = 0

    def on_arrival(self, request: Request, now: float) -> None:
        """A request is queued for the first time: its session is known by its name, if it gives one (SES-1)."""
        if not self._is_on or not request.session_id:
            return
        key = request.namespace, request.session_id
        session = self._named.pop(key, None) or Session()
        self._named[key] = session
        if len(self._named) > MOST_NAMED:
            self._named.popitem(last=False)
        self._begin_turn(request, session, now)

    def on_admitted(self, request: Request, node: Node | None, uncached_tokens: int) -> None:
        """A request enters the batch; its cached prefix ends at `node` (SES-1, SES-2)."""
        if not self._is_on:
            return
        if request.session is None:
            self._begin_turn(request, session_at(node) or Session(), request.timeline.arrived_s)
        session = request.session
        assert session is not None
        self.held_turns += self._kv.end_hold(session)
        session.served += uncached_tokens

    def on_end(self, request: Request, is_finished: bool, now: float) -> None:
        """A request has ended and given back its lease. Of a finished one the KV is held for the next turn (SES-3)."""
        session = request.session
        if session is None:
            return
        session.live -= 1
        session.served += UNITS_OF_AN_OUTPUT * len(request.output_ids)
        if not is_finished or session.live:
            return
        is_named = bool(request.session_id)
        hold_s = self._hold_s(session, request.total_tokens, is_named, now) if self._holds_kv else 0.0
        session.gap = gap = Gap(now)
        self._gaps[is_named].append(gap)
        self._kv.note_session(session, request.key(), request.namespace, now + hold_s if hold_s else None)

    def _begin_turn(self, request: Request, session: Session, now: float) -> None:
        request.session = session
        if session.gap is not None:
            self.turns += 1
            session.gap.seconds = max(0.0, now - session.gap.since_s)
            session.gaps.append(session.gap.seconds)
            session.gap = None
        session.live += 1

    def _hold_s(self, session: Session, tokens: int, is_named: bool, now: float) -> float:
        """Return for how long holding `tokens` pays: each second of it costs their share of a pool as full as now."""
        capacity = self._kv.capacity_tokens
        used_share = max(LEAST_USED_SHARE, 1.0 - self._kv.reachable_tokens() / capacity)
        worth_s = self._prefill_s(tokens) * capacity / (tokens * used_share)
        if len(session.gaps) >= LEAST_OF_ONE:
            return best_hold_s(session.gaps, worth_s)
        seen = [gap for gap in self._gaps[is_named] if gap.seconds < math.inf or now - gap.since_s > MOST_HOLD_S]
        if len(seen) >= LEAST_OF_ALL:
            return best_hold_s([gap.seconds for gap in seen], worth_s)
        # Without knowledge, to hold for as long as it is worth costs at most twice the best (ski rental).
        return min(worth_s, MOST_HOLD_S) if is_named else 0.0


def best_hold_s(gaps: Sequence[float], worth_s: float) -> float:
    """Return the time t that maximises worth_s * P(gap <= t) - E[min(gap, t)] over the gaps seen, with a margin.

    0 if no time pays. What does not come back has an infinite gap."""
    best = best_s = below_s = 0.0
    for count, gap_s in enumerate(sorted(gaps), 1):
        if gap_s > MOST_HOLD_S:
            break
        below_s += gap_s
        value = worth_s * count - below_s - gap_s * (len(gaps) - count)
        if value > best:
            best, best_s = value, gap_s
    return min(MARGIN * best_s, MOST_HOLD_S)
