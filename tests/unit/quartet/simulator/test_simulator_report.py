"""Metrics against values computed by hand."""

import msgspec
import pytest

from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.record import Gaps, Run, Sample, Timeline
from quartet.simulator.report import Summary, count_overtaken, jain, make_report, percentile, summarise, summarise_gaps
from quartet.simulator.request import Workload
from quartet.simulator.tables import print_report
from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.step_cost import StepCost

ENGINE = SimulatedEngine(
    cost=StepCost(1.0, 0.0, 0.0, 0.0, 0.0), kv_tokens=4096, context_length=4096, page_size=4, max_slots=1
)
KEYS = {
    "output_tokens_per_s",
    "prefix_hit_rate",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "e2e_s_by_class",
    "retractions",
    "recomputed_tokens",
    "preemptions",
    "fairness",
    "mean_running",
    "max_queued",
}


def workload(at: float, tenant: str = "", **fields: object) -> Workload:
    return msgspec.convert(
        {"arrival_s": at, "max_tokens": 3, "output_tokens": 3, "own_tokens": 8, "tenant": tenant, **fields}, Workload
    )


def test_a_tiny_run_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    run = simulate([workload(0.0, "x"), workload(0.0, "y")], ENGINE, SchedulerConfig())
    report = make_report(run, ENGINE, 64)
    # The first request takes seconds 0 to 3, the second 3 to 6; alone each takes 3.
    assert report.output_tokens_per_s == 1.0
    assert report.ttft_s == Summary(2.5, 2.5, pytest.approx(3.7), pytest.approx(3.97), 4.0)
    assert report.tpot_s.mean == 1.0 and report.gap_s == Summary(1.0, 1.0, 1.0, 1.0, 1.0)
    assert report.e2e_s.max == 6.0 and report.duration_s == 6.0
    assert report.fairness == pytest.approx((1 + 2) ** 2 / (2 * (1 + 4)))
    assert set(msgspec.to_builtins(report)) >= KEYS
    assert set(report.e2e_s_by_class) == {"all"}
    assert {name: found.p99 for name, found in report.ttft_s_by_tenant.items()} == {"x": 1.0, "y": 4.0}
    print_report(report, "title")
    assert "first token, tenant y" in capsys.readouterr().out


def test_recomputed_tokens_are_what_retractions_cost() -> None:
    small = msgspec.structs.replace(ENGINE, kv_tokens=64, max_slots=4)
    requests = [
        Workload(arrival_s=0.0, max_tokens=24, output_tokens=24, own_tokens=12),
        Workload(arrival_s=0.0, max_tokens=24, output_tokens=24, own_tokens=12),
    ]
    config = SchedulerConfig(schedule_conservativeness=0.0, retract_decode_steps=0, disable_radix_cache=True)
    report = make_report(simulate(requests, small, config), small, 64)
    assert report.retractions == 1
    # The first, a step ahead, needs a ninth page when the pool of 64 tokens is full: the second gives way with 31.
    assert report.recomputed_tokens == 31
    assert report.finished == 2


def test_percentiles_lie_between_neighbours() -> None:
    assert [percentile([0.0, 10.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [0.0, 5.0, pytest.approx(9.9), 10.0]
    assert summarise([3.0, 1.0, 2.0]) == Summary(2.0, 2.0, pytest.approx(2.8), pytest.approx(2.98), 3.0)
    assert summarise([]) == Summary()


def test_gaps_count_as_often_as_rows_had_them() -> None:
    gaps = Gaps()
    gaps.add(1.0, 98)
    gaps.add(5.0, 2)
    assert summarise_gaps([gaps]) == Summary(1.08, 1.0, 1.0, 5.0, 5.0)
    assert summarise_gaps([Gaps()]) == Summary()


def test_jains_index() -> None:
    assert jain([2.0, 2.0, 2.0]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([]) == 1.0


def test_overtaken_counts_passes_in_which_a_later_arrival_went_first() -> None:
    run = Run([workload(0.0)] * 5)
    # Steps admit {2}, {0, 4}, {3}, {1}; all five had arrived before the first.
    run.admission_order, run.admitting_passes = [2, 0, 4, 3, 1], [2, 4, 3, 1]
    for step, admitted in enumerate([[2], [0, 4], [3], [1]]):
        for number in admitted:
            run.outcomes[number].passes_at_admission = step
    # 0 saw 2 go first; 3 saw 4; 1 saw 2, 4 and 3. Those admitted together did not overtake each other.
    assert count_overtaken(run) == [0, 1, 0, 1, 3]


def test_a_long_timeline_is_thinned_but_its_sums_are_exact() -> None:
    timeline = Timeline()
    for second in range(10_000):
        timeline.add(Sample(float(second), second % 7, 3, second, 0.5))
    assert len(timeline.samples) <= Timeline.MAX_SAMPLES
    assert (timeline.max_queued, timeline.max_kv_used_tokens) == (6, 9999)
    assert timeline.running_seconds / timeline.busy_s == 3
    gaps = {b.time_s - a.time_s for a, b in zip(timeline.samples, timeline.samples[1:], strict=False)}
    assert len(gaps) == 1
