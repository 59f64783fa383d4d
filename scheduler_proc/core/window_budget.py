"""Whether the pools of windows have room for a candidate, beside what running requests will take (rule WIN-4)."""

from collections.abc import Callable, Iterable, Sequence

from scheduler_proc.core.lengths import ceil_to
from scheduler_proc.core.request import Request
from scheduler_proc.core.window_group import WindowGroup


class WindowBudget:
    """The room of one pass, of each window's pool; a model without windows has room for everything.

    Args:
        windows: the pools.
        running: the running requests.
        reservation_of: what the remaining output of one of them counts for, in tokens.
    """

    def __init__(
        self, windows: Sequence[WindowGroup], running: Iterable[Request], reservation_of: Callable[[Request], float]
    ) -> None:
        self._windows, self._reservation_of = windows, reservation_of
        self._reserved = [sum(self._share(group, one) for one in running) for group in windows] if windows else []

    def _share(self, group: WindowGroup, running: Request) -> float:
        return group.growth(running.lease, self._reservation_of(running))

    def fits(self, request: Request, length: int, output: float, victims: Sequence[Request] = ()) -> bool:
        """Say whether a candidate, whose match is locked, has room for the `length` tokens that it computes now and
        for its window after `output` more, once `victims` have left the batch."""
        for group, reserved in zip(self._windows, self._reserved, strict=True):
            size = group.page_size
            needed = max(ceil_to(length, size), group.growth(request.lease, request.uncomputed_tokens + output))
            freed = sum(group.sole_tokens(one.lease) + self._share(group, one) for one in victims)
            if needed + size > group.reachable_tokens - reserved + freed:
                return False
        return True

    def add(self, request: Request, length: int, output: float) -> None:
        """Reserve what an admitted request will take after the `length` tokens that it computes now."""
        for at, group in enumerate(self._windows):
            more = group.growth(request.lease, request.uncomputed_tokens + output)
            self._reserved[at] += max(0.0, more - length)

    def remove(self, victim: Request) -> None:
        """A running request was preempted, whose pages are still held."""
        for at, group in enumerate(self._windows):
            self._reserved[at] -= self._share(group, victim)
