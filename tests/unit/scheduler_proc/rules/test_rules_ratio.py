"""The new-token ratio: RAT-1 to RAT-6, examples E1 to E7."""

import pytest
from factory import Bench, Room, adder, books, greedy, request

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.ratio import NewTokenRatio, estimate_ratio
from tests.support.core_rig import CoreRig

K = 20


def constants(**config: float) -> tuple[float, float, float]:
    ratio = NewTokenRatio(SchedulerConfig(**config))
    assert ratio.current == ratio.initial
    return ratio.initial, ratio.minimum, ratio.decay


def test_e1_defaults() -> None:
    """E1, RAT-1."""
    assert constants() == pytest.approx((0.7, 0.098, 0.001003333), abs=1e-9)


@pytest.mark.parametrize(("decays", "expected"), [(300, 0.399), (600, 0.098), (601, 0.098)])
def test_e2_decay_to_the_floor(decays: int, expected: float) -> None:
    """E2, RAT-2: and no further."""
    ratio = NewTokenRatio(SchedulerConfig())
    for _ in range(decays):
        ratio.on_decode()
    assert ratio.current == pytest.approx(expected)


@pytest.mark.parametrize(
    ("conservativeness", "expected"), [(0.3, (0.21, 0.0294, 0.000301)), (2, (1, 0.14, 0.00143333)), (0, (0, 0, 0))]
)
def test_e3_conservativeness(conservativeness: float, expected: tuple[float, float, float]) -> None:
    """E3, RAT-1."""
    assert constants(schedule_conservativeness=conservativeness) == pytest.approx(expected, abs=1e-8)


def test_e4_estimate_over_the_remaining_requests() -> None:
    """E4, RAT-3."""
    assert estimate_ratio([(40, 200), (10, 100)], K) == pytest.approx(90 / 301)


def test_e5_an_estimate_below_the_floor_snaps_up_at_the_next_decay() -> None:
    """E5, RAT-3: the estimate has no floor and M is not clipped."""
    ratio = NewTokenRatio(SchedulerConfig())
    ratio.on_retract([(2, 4000), (3, 4000)])
    assert ratio.current == pytest.approx(45 / 8001)
    ratio.on_decode()
    assert ratio.current == pytest.approx(0.098)


def test_e6_the_estimate_is_at_most_one_and_no_request_changes_nothing() -> None:
    """E6, RAT-4: the estimator returns 0.0 for no request; the scheduler keeps what it had."""
    assert estimate_ratio([(200, 10)], K) == 1.0
    assert estimate_ratio([], K) == 0.0
    ratio = NewTokenRatio(SchedulerConfig())
    ratio.on_decode()
    before = ratio.current
    ratio.on_retract([])
    assert ratio.current == before == pytest.approx(0.698997, abs=1e-6)


def test_e7_five_steps() -> None:
    """E7, RAT-2: a decode, a prefill, a mixed step, a decode with a retraction to 0.3, a decode."""
    rig = CoreRig(pages=600, page_size=1, slots=8, chunked_prefill_size=-1, enable_mixed_chunk=True)
    seen = []
    rig.submit([1, 2, 3], params=greedy(99))
    seen.append(ratio_of(rig))  # its prefill, and one decode that is issued at once
    first = len(rig.scheduler._batch.running)
    rig.submit([4, 5, 6], params=greedy(99))
    rig.step()  # a mixed step takes the second place in flight
    seen.append(ratio_of(rig))
    assert first == 1 and len(rig.scheduler._batch.running) == 2
    assert seen == pytest.approx([0.698997, 0.698997], abs=1e-6)
    ratio = rig.scheduler._ratio
    ratio.on_retract([(10, 99)])
    assert ratio.current == pytest.approx(0.3)
    rig.step()
    assert ratio.current == pytest.approx(0.298997, abs=1e-6)


def ratio_of(rig: CoreRig) -> float:
    return rig.scheduler.snapshot()[0]["new_token_ratio"]


@pytest.mark.parametrize("config", [{}, {"enable_mixed_chunk": True}, {"step_order": "decode_first"}])
def test_rat2_one_decay_for_each_pure_decode_step(config: dict[str, object]) -> None:
    """RAT-2: prefill and mixed steps do not count, whatever the order of steps."""
    rig = CoreRig(pages=600, page_size=1, slots=8, chunked_prefill_size=8, **config)
    for i in range(6):
        rig.submit([i + 1] * 20, params=greedy(12))
        rig.step()
        rig.step()
    gauges, counters = rig.scheduler.snapshot()
    assert counters["retractions"] == 0 and counters["decode_steps"] > 0
    expected = 0.7 - counters["decode_steps"] * 0.602 / 600
    assert gauges["new_token_ratio"] == pytest.approx(expected)


def test_rat2_a_retraction_replaces_the_decay() -> None:
    """RAT-2, RAT-3: the step that retracts decays nothing, though the survivors decode in it."""
    bench = Bench(pages=160, slots=2)
    bench.run("x", 60, 12, 50)
    bench.run("y", 60, 12, 50)
    bench.kv.pool.allocate(bench.kv.pool.available_tokens)
    bench.scheduler._schedule(0.0)
    assert bench.waiting() == "y" and len(bench.in_flight.steps) == 2
    first_decode = (12 + K) / 51
    # The second step in flight is a pure decode again.
    assert bench.ratio.current == pytest.approx(first_decode - bench.ratio.decay)


def test_rat5_reset_needs_everything_empty() -> None:
    """RAT-5: not while requests wait for a worker, and not while a result is in flight."""
    rig = CoreRig(pages=64, page_size=4)
    rig.submit([1, 2, 3], params=greedy(30))
    for _ in range(10):
        rig.step()
    decayed = ratio_of(rig)
    assert decayed < 0.7
    rig.worker_lost()
    assert ratio_of(rig) == decayed
    rig.worker_up()
    while not rig.scheduler._table.is_empty:
        assert ratio_of(rig) < 0.7
        rig.step()
    rig.run()
    assert ratio_of(rig) == 0.7


def test_rat6_the_candidates_own_reservation_is_whole() -> None:
    """RAT-6: at ratio 0 the running request counts for nothing, the candidate for all it may write."""
    budget = adder(Room(1000), [request(10, 0, 500)], ratio=0.0)
    assert budget.total_offset == 0
    length, _ = budget.add(request(100, 0, 300, number=2))
    assert length == 100 and books(budget) == (401, 599)
