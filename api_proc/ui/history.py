"""The last minutes of the scheduler, one point for each of its Snapshots. Pure: times are arguments."""

import collections

import msgspec

from quartet.wire.frames import Snapshot

MOST_POINTS = 600
"""Ten minutes; the page shows five."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """The engine at one Snapshot, and per second or step since the one before.

    `number` rises by one, `time_s` is wall time. `hit_rate` is None where no prompt was computed.
    """

    number: int
    time_s: float
    running: int
    waiting: int
    kv_used_tokens: int
    kv_evictable_tokens: int
    new_token_ratio: float
    retractions: int
    hit_rate: float | None
    prefill_tokens_per_step: float
    decode_tokens_per_step: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class History:
    """A ring of points. One is made of a Snapshot in a few lookups, whether a page is open or not."""

    def __init__(self) -> None:
        self._points: collections.deque[Point] = collections.deque(maxlen=MOST_POINTS)
        self._last: Snapshot | None = None
        self._last_s = 0.0
        self._number = 0

    def take(self, snapshot: Snapshot, now: float, wall_s: float) -> None:
        """Add a point, unless the Snapshot is the last one again; `now` is the clock that durations are of."""
        last = self._last
        if snapshot is last:
            return
        # A successor of the scheduler counts from 0.
        before = last.counters if last is not None and last.epoch == snapshot.epoch else snapshot.counters

        def grown(*names: str) -> float:
            return sum(snapshot.counters.get(name, 0.0) - before.get(name, 0.0) for name in names)

        steps, elapsed_s = max(1.0, grown("prefill_steps", "decode_steps")), max(0.001, now - self._last_s)
        prefill, decode, cached = grown("prefill_tokens"), grown("output_tokens"), grown("cached_tokens")
        gauges = snapshot.gauges
        self._number += 1
        self._points.append(
            Point(
                self._number,
                round(wall_s, 2),
                int(gauges.get("num_running_reqs", 0)),
                int(gauges.get("num_queue_reqs", 0) + gauges.get("num_grammar_queue_reqs", 0)),
                int(gauges.get("kv_used_tokens", 0)),
                int(gauges.get("kv_evictable_tokens", 0)),
                round(gauges.get("new_token_ratio", 0.0), 4),
                int(grown("retractions")),
                round(cached / (cached + prefill), 4) if cached + prefill else None,
                round(prefill / steps, 2),
                round(decode / steps, 2),
                round(prefill / elapsed_s, 1),
                round(decode / elapsed_s, 1),
            )
        )
        self._last, self._last_s = snapshot, now

    def since(self, number: int) -> list[Point]:
        """Return the points after the one of that number."""
        fresh = min(self._number - number, len(self._points))
        return [self._points[index] for index in range(len(self._points) - fresh, len(self._points))]
