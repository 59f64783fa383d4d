"""The time to first token that is aimed at: whose turn is urgent, and who cannot make it any more (rules POL-7, PRI-5).

What a queue takes is learnt from its own progress: the prompt tokens computed in the time in which something waited.
"""

import heapq
from collections.abc import Iterable

from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import RequestError
from scheduler_proc.core.request import Request

HALF_LIFE_S = 10.0
LEAST_MEASURED_S = 0.5
"""Time with a backlog from which on its speed is believed."""
LATENCY_WEIGHT = 0.1
URGENT_SHARE = 0.5
"""A request is urgent when less than this share of the target is left to it."""
HOPELESS_EVERY = 8
"""Of so many passes that admit, one begins with the oldest that cannot make it, so that none waits for ever."""


class FirstTokens:
    """Orders a queue by a target, and refuses what would miss it. With a target of 0 it does neither."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._target_s = config.ttft_target_ms / 1000
        self._sheds = config.shed_hopeless
        self._has_classes = config.enable_priority_scheduling
        self._tokens = self._seconds = 0.0
        self._latency_s = 0.0
        self._last_s: float | None = None
        self._last_tokens = 0

    def on_pass(self, computed_tokens: int, has_waiting: bool, now: float) -> None:
        """A pass has ended, by which so many prompt tokens have been computed in all."""
        if self._last_s is not None and now > self._last_s:
            seconds = now - self._last_s
            kept = 0.5 ** (seconds / HALF_LIFE_S)
            self._tokens = kept * self._tokens + computed_tokens - self._last_tokens
            self._seconds = kept * self._seconds + seconds
        # Time without a backlog says nothing about what a backlog takes.
        self._last_s, self._last_tokens = (now if has_waiting else None), computed_tokens

    def on_first_token(self, request: Request, now: float) -> None:
        """A request has its first token: what it took since its admission, beside its share of the queue's speed."""
        latency_s = now - request.timeline.started_s - self._needed_s(request.prompt_tokens)
        self._latency_s += LATENCY_WEIGHT * (max(0.0, latency_s) - self._latency_s)

    def order(self, waiting: list[Request], passes: int, now: float) -> None:
        """Put urgent requests of a class first, the most urgent before others, and last those that cannot make it.

        The order is otherwise left as it is. Requests that have had a first token are not looked at.
        """
        if not self._target_s or not waiting:
            return
        late = self._late(waiting, now)
        oldest = min(late.values(), key=lambda request: request.seq) if late and passes % HOPELESS_EVERY == 0 else None

        def rank(request: Request) -> tuple[float, ...]:
            of_class = float(request.urgency) if self._has_classes else 0.0
            if request is oldest:
                return of_class, -1.0
            if id(request) in late:
                return of_class, 2.0
            left_s = self._left_s(request, now)
            is_urgent = request.stream.first_token_s < 0 and left_s < URGENT_SHARE * self._target_s
            return (of_class, 0.0, left_s) if is_urgent else (of_class, 1.0)

        waiting.sort(key=rank)

    def _late(self, waiting: list[Request], now: float) -> dict[int, Request]:
        """Return, by identity, what cannot make it: the fewest that must be late if the rest is to be in time.

        Jobs by deadline; where one would be late, the longest so far is left out (Moore, 1968)."""
        started, total_s = list[tuple[float, int]](), 0.0
        late: dict[int, Request] = {}
        by_id = {id(request): request for request in waiting if request.stream.first_token_s < 0}
        for request in sorted(by_id.values(), key=lambda request: (request.urgency, request.timeline.accepted_s)):
            needed_s = self._needed_s(request.uncomputed_tokens)
            heapq.heappush(started, (-needed_s, id(request)))
            total_s += needed_s
            if total_s + self._latency_s > request.timeline.accepted_s + self._target_s - now:
                longest_s, longest = heapq.heappop(started)
                total_s += longest_s
                late[longest] = by_id[longest]
        return late

    def _left_s(self, request: Request, now: float) -> float:
        return request.timeline.accepted_s + self._target_s - now - self._needed_s(request.uncomputed_tokens)

    def check(self, prompt_tokens: int, accepted_s: float, ahead: Iterable[Request], now: float) -> None:
        """Raise RequestError 503 for a request that cannot make it behind those `ahead`, if such ones are shed."""
        if not self._sheds or not self._target_s:
            return
        needed_s = self._needed_s(prompt_tokens + sum(request.uncomputed_tokens for request in ahead)) + self._latency_s
        late_s = now + needed_s - accepted_s - self._target_s
        if late_s > 0:
            raise too_late(late_s)

    def missed(self, waiting: Iterable[Request], now: float) -> list[Request]:
        """Return what waits although its target has passed, if such ones are shed."""
        return [one for one in self._never_started(waiting) if one.timeline.accepted_s + self._target_s <= now]

    def next_s(self, waiting: Iterable[Request]) -> float | None:
        """Return when `missed` has the next one."""
        return min((one.timeline.accepted_s + self._target_s for one in self._never_started(waiting)), default=None)

    def _never_started(self, waiting: Iterable[Request]) -> Iterable[Request]:
        if not self._sheds or not self._target_s:
            return ()
        return (one for one in waiting if one.stream.first_token_s < 0)

    def _needed_s(self, tokens: int) -> float:
        """Return how long a queue takes for so many tokens; 0 while that is not known."""
        if self._seconds < LEAST_MEASURED_S or not self._tokens:
            return 0.0
        return tokens * self._seconds / self._tokens


def too_late(late_s: float) -> RequestError:
    """Return the error of a request that is shed, by which its first token would be late."""
    message = "The server has too much to do: the first token would come later than it aims at. Try again later."
    return RequestError(503, "overloaded", message, None, max(1.0, late_s))
