"""When live requests run out of time: their own deadlines, and the timeouts of waiting and running (rules 6.5)."""

import heapq
from collections.abc import Callable, Iterable, Iterator

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.request import Request, RequestState


class Deadlines:
    """A heap of deadlines; timeouts are looked at request by request, if any is set: only then is `live` called."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._waiting_timeout_s = config.req_waiting_timeout
        self._running_timeout_s = config.req_running_timeout
        self._heap: list[tuple[float, int]] = []
        self._watched: dict[int, Request] = {}
        """By arrival number. What has ended leaves this at once, and the heap with its deadline."""

    def add(self, request: Request, deadline_s: float) -> None:
        """Watch a request's own deadline until it ends."""
        self._watched[request.seq] = request
        heapq.heappush(self._heap, (deadline_s, request.seq))

    def remove(self, request: Request) -> None:
        """Forget a request that has ended."""
        self._watched.pop(request.seq, None)

    def take_passed(self, now: float) -> Iterator[Request]:
        """Yield the live requests whose own deadline has passed."""
        while self._heap and (self._heap[0][1] not in self._watched or self._heap[0][0] <= now):
            request = self._watched.pop(heapq.heappop(self._heap)[1], None)
            if request is not None:
                yield request

    def timed_out(self, live: Callable[[], Iterable[Request]], now: float) -> list[Request]:
        """Return which of the live requests have waited or run for too long."""
        return [request for request, limit_s in self._limits(live) if now >= limit_s]

    def next(self, live: Callable[[], Iterable[Request]]) -> float | None:
        """Return when the first of the live requests runs out of time."""
        while self._heap and self._heap[0][1] not in self._watched:
            heapq.heappop(self._heap)
        own = [self._heap[0][0]] if self._heap else []
        return min([*own, *(limit_s for _, limit_s in self._limits(live))], default=None)

    def _limits(self, live: Callable[[], Iterable[Request]]) -> Iterator[tuple[Request, float]]:
        if self._waiting_timeout_s <= 0 and self._running_timeout_s <= 0:
            return
        for request in live():
            timeline = request.timeline
            is_waiting = request.state is RequestState.WAITING
            timeout_s = self._waiting_timeout_s if is_waiting else self._running_timeout_s
            if timeout_s > 0:
                yield request, (timeline.queued_s if is_waiting else timeline.running_since_s) + timeout_s
