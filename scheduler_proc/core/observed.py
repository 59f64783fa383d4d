"""How long outputs have turned out lately, by tenant: what `--reservation observed` expects of a request (rule OBS-1).

Source of the idea: Past-Future (arXiv 2507.10150), whose draws are replaced by a quantile, so that the same events
give the same frames.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque

KEPT = 1000
"""Lengths of one class that count."""
ENOUGH = 50
"""Lengths below which a class tells nothing."""
MOST_CLASSES = 256
QUANTILE = 0.8


class _Window:
    """The last KEPT lengths of one class, in their order and sorted."""

    def __init__(self) -> None:
        self._lengths: deque[int] = deque()
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, length: int) -> None:
        if len(self._lengths) == KEPT:
            oldest = self._lengths.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._lengths.append(length)
        insort(self._sorted, length)

    def above(self, outputs: int) -> int | None:
        """Return the quantile of the lengths above `outputs`, None if there is none."""
        first = bisect_right(self._sorted, outputs)
        count = len(self._sorted) - first
        return self._sorted[first + min(count - 1, int(QUANTILE * count))] if count else None


class ObservedLengths:
    """Lengths of outputs that ended by themselves, of at most MOST_CLASSES tenants, and of all.

    Args:
        is_kept: whether anything is noted.
    """

    def __init__(self, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._all = _Window()
        self._by_class: dict[str, _Window] = {}

    @property
    def are_enough(self) -> bool:
        """Say whether enough have been seen to expect anything."""
        return len(self._all) >= ENOUGH

    def note(self, class_name: str, length: int) -> None:
        """An output of a tenant ended by itself."""
        if not self._is_kept:
            return
        self._all.add(length)
        window = self._by_class.pop(class_name, None) or _Window()
        window.add(length)
        self._by_class[class_name] = window
        if len(self._by_class) > MOST_CLASSES:
            del self._by_class[next(iter(self._by_class))]

    def expected(self, class_name: str, outputs: int, limit: int) -> int:
        """Return how long an output that has `outputs` tokens will be, at most `limit`; `limit` if none was longer."""
        window = self._by_class.get(class_name)
        if window is None or len(window) < ENOUGH:
            window = self._all
        length = window.above(outputs)
        return limit if length is None else min(length, limit)
