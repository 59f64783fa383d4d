"""The points of the page's charts, from Snapshots."""

from typing import Any

from api_proc.ui.history import MOST_POINTS, History, Point
from quartet.wire.frames import Snapshot
from quartet.wire.ids import Epoch, Role


def snapshot(epoch: int = 1, gauges: dict[str, float] | None = None, **counters: float) -> Snapshot:
    return Snapshot(Role.SCHEDULER, 0, Epoch(epoch), gauges or {}, counters)


def points(*taken: Snapshot, every_s: float = 1.0) -> list[Point]:
    history = History()
    for index, one in enumerate(taken):
        history.take(one, 100.0 + index * every_s, 1e9 + index * every_s)
    return history.since(0)


def test_gauges_are_shown_and_counters_by_step_and_second() -> None:
    gauges: dict[str, Any] = {
        "num_running_reqs": 3.0, "num_queue_reqs": 2.0, "num_grammar_queue_reqs": 1.0, "new_token_ratio": 0.5,
        "kv_used_tokens": 640.0, "kv_evictable_tokens": 64.0,
    }  # fmt: skip
    before = snapshot(prefill_steps=5, decode_steps=5, prefill_tokens=10, output_tokens=10, cached_tokens=10)
    after = snapshot(1, gauges, prefill_steps=6, decode_steps=8, prefill_tokens=110, output_tokens=30,
                     cached_tokens=310, retractions=2)  # fmt: skip
    first, second = points(before, after, every_s=2.0)
    assert (first.hit_rate, first.prefill_tokens_per_step, first.decode_tokens_per_s) == (None, 0.0, 0.0)
    assert second == Point(2, 1e9 + 2, 3, 3, 640, 64, 0.5, 2, 0.75, 25.0, 5.0, 50.0, 10.0)


def test_a_successor_of_the_scheduler_counts_from_zero() -> None:
    for after in (snapshot(2, output_tokens=5.0), snapshot(2, output_tokens=500.0)):
        assert points(snapshot(output_tokens=100.0), after)[1].decode_tokens_per_s == 0.0


def test_a_snapshot_makes_one_point() -> None:
    one = snapshot()
    assert len(points(one, one, one)) == 1


def test_the_ring_is_bounded_and_read_from_a_number_on() -> None:
    history = History()
    for index in range(MOST_POINTS + 50):
        history.take(snapshot(output_tokens=float(index)), float(index), float(index))
    everything = history.since(0)
    assert len(everything) == MOST_POINTS and everything[-1].number == MOST_POINTS + 50
    assert history.since(everything[-1].number) == []
    assert [one.number for one in history.since(MOST_POINTS + 48)] == [MOST_POINTS + 49, MOST_POINTS + 50]
    assert history.since(MOST_POINTS + 99) == []
