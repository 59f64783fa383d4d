"""STEP-16: rows have their next token in time, prompts have what is left, and one gap in a hundred may be long."""

import random

import pytest
from factory import greedy, own_tokens

from quartet.simulator.driver import simulate
from quartet.simulator.presets import DEFAULT_PRESET, preset
from quartet.simulator.record import Run
from quartet.simulator.report import make_report
from quartet.simulator.request import Workload
from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.slack import LONGEST_STALL, Slack
from scheduler_proc.core.step_cost import StepCost, StepLoad
from scheduler_proc.core.step_time_model import MOST_GROWTH, StepTimeModel
from tests.support.core_rig import CoreRig

COST = StepCost(5e-3, 2e-5, 1e-9, 2e-5, 4e-8)
TARGET_S = 0.05


def measured(cost: StepCost = COST) -> StepTimeModel:
    """Return a model that has seen steps of every kind."""
    model, rng = StepTimeModel(), random.Random(2)
    for _ in range(1500):
        tokens, rows = rng.choice([0, 200, 1000, 4000]), rng.choice([0, 10, 60])
        load = StepLoad(tokens, tokens * 500, rows, rows * rng.randrange(200, 3000))
        model.learn(load, cost.seconds(load))
    return model


def share_of_long_gaps(run: Run, target_s: float) -> float:
    pairs = [pair for gaps in run.gaps.values() for pair in zip(gaps.seconds, gaps.counts, strict=True)]
    return sum(count for gap_s, count in pairs if gap_s > target_s) / sum(count for _, count in pairs)


def busy(rate: float, seconds: float) -> list[Workload]:
    """Prompts of very different lengths that come in bursts."""
    rng, now, found = random.Random(4), 0.0, []
    while now < seconds:
        now += rng.expovariate(rate / 4)
        for _ in range(4):
            length, output = min(int(rng.lognormvariate(6.8, 0.8)), 8000), rng.randrange(50, 300)
            found.append(Workload(arrival_s=now, max_tokens=output, output_tokens=output, own_tokens=length))
    return found


def test_step16_the_promise_is_kept_and_prompts_are_earlier_than_with_a_fixed_chunk() -> None:
    """At most one gap in a hundred is long; with the largest chunk that keeps the promise, first tokens are later."""
    engine, requests = preset(DEFAULT_PRESET), busy(14.0, 40.0)
    runs = {
        name: simulate(requests, engine, SchedulerConfig(**settings))  # type: ignore[arg-type]
        for name, settings in {
            "slack": {"step_order": "slack", "tbt_target_ms": 50.0},
            "fixed": {"step_order": "decode_first", "chunked_prefill_size": 1024},
            "prompts": {},
        }.items()
    }
    reports = {name: make_report(run, engine, 8192) for name, run in runs.items()}
    assert share_of_long_gaps(runs["slack"], TARGET_S) <= 0.01 < share_of_long_gaps(runs["prompts"], TARGET_S)
    assert share_of_long_gaps(runs["fixed"], TARGET_S) <= 0.01
    first = {name: report.ttft_s.p99 or 0.0 for name, report in reports.items()}
    assert first["slack"] < 0.9 * first["fixed"]
    assert reports["slack"].output_tokens_per_s > 0.98 * reports["fixed"].output_tokens_per_s
    assert (reports["slack"].gap_s.max or 0.0) < (LONGEST_STALL + 8) * TARGET_S


def test_step16_a_step_ends_when_its_rows_are_due() -> None:
    model = measured()
    plan = Slack(TARGET_S, model).plan(20, 20_000, 0, 100_000, 1.0, True)
    assert plan.has_rows and plan.token_cap is not None
    tokens = plan.token_cap
    took_s = COST.of(tokens, tokens * tokens // 2, 20, 20_020)
    assert 0.9 * TARGET_S < took_s <= 1.01 * TARGET_S


def test_step16_without_rows_a_prompt_has_the_whole_step() -> None:
    assert Slack(TARGET_S, measured()).plan(0, 0, 0, 100_000, 1.0, False) == (False, None)


def test_step16_rows_alone_may_take_the_target_and_prompts_go_on() -> None:
    """A fifth of the target is for prompts even then."""
    plan = Slack(TARGET_S, measured()).plan(500, 2_000_000, 0, 100_000, 1.0, True)
    assert plan.has_rows and plan.token_cap and plan.token_cap > 100


def test_step16_rows_stand_still_for_a_backlog_when_they_have_credit_for_it() -> None:
    slack, now = Slack(TARGET_S, measured()), 0.0
    assert slack.plan(20, 20_000, 0, 50_000, now, True).has_rows
    for _ in range(500):
        now += 0.02
        slack.on_rows(20, 0.02, 0.02, now)
    assert slack.plan(20, 20_000, 0, 100, now, True).has_rows
    stalls = 0
    while not slack.plan(20, 20_000, 0, 50_000, now + 0.1 * stalls, stalls == 0).has_rows:
        stalls += 1
    assert stalls == LONGEST_STALL * TARGET_S / 0.1
    # Each has one long gap, and no further credit is left after the fourth.
    for long_gaps in range(1, 6):
        now += 1.0
        slack.on_rows(20, 0.02, 0.02, now)
        assert slack.plan(20, 20_000, 0, 10_000_000, now, True).has_rows == (long_gaps > 3)


def test_step16_rows_go_on_when_no_prompt_can_enter() -> None:
    """The pool is full: what waits cannot use the time that rows have."""
    rig = CoreRig(pages=16, page_size=4, slots=4, step_order="slack", tbt_target_ms=50.0, init_new_token_ratio=1.0)
    rids = [rig.submit(own_tokens(number, 20), params=greedy(20)) for number in range(5)]
    while rig.steps:
        rig.now += 0.01
        rig.step()
    assert all(len(rig.outputs(rid)) == 20 for rid in rids)


# The model of step times


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_steady_load_does_not_make_the_model_forget(factor: float) -> None:
    """Ten thousand steps of one kind, perhaps on a device that has become slower, leave the cost of others known."""
    model = measured()
    same = StepLoad(1000, 600_000, 40, 40_000)
    for _ in range(10_000):
        model.learn(same, factor * COST.seconds(same))
    other = StepLoad(200, 20_000, 10, 9_000)
    assert model.predict(same) == pytest.approx(factor * COST.seconds(same), rel=0.1)
    assert model.predict(other) > 0.5 * COST.seconds(other)
    if factor == 1.0:
        assert model.predict(other) == pytest.approx(COST.seconds(other), rel=0.05)


def test_nothing_is_bounded_by_what_was_never_measured() -> None:
    """Steps of rows alone say nothing about prompts."""
    model = StepTimeModel()
    assert model.prefill_budget(1.0, 4, 1000, 0) == 0 and not model.is_trusted
    for rows in range(1, 40):
        load = StepLoad(0, 0, rows, rows * 500)
        model.learn(load, COST.seconds(load))
    assert model.is_trusted and model.prefill_budget(1.0, 4, 1000, 0) == 0
    load = StepLoad(512, 512 * 256, 4, 2000)
    model.learn(load, COST.seconds(load))
    assert 0 < model.prefill_budget(100.0, 4, 1000, 0) <= MOST_GROWTH * 512
