"""Retraction that keeps KV and admission by observed lengths under overload: RET-19 to RET-21, OBS-2."""

import msgspec

from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.record import Run
from quartet.simulator.scenarios import make_scenario
from quartet.wire.config import SchedulerConfig


def overload(**settings: object) -> Run:
    scenario = make_scenario("overload", preset("llama-8b-h100"), 0, {"requests": "250"})
    config = SchedulerConfig(max_running_requests=scenario.max_running_requests)
    return simulate(scenario.requests, scenario.engine, msgspec.structs.replace(config, **settings))


def recomputed(run: Run) -> int:
    return sum(outcome.recomputed_tokens for outcome in run.outcomes)


def test_ret19_a_quarter_is_recomputed_at_the_same_throughput() -> None:
    """RET-19 to RET-21: no request is retracted more than three times, and no stream stands still for seconds."""
    today, kept = overload(), overload(retraction_keeps_kv=True)
    assert recomputed(today) > 400
    assert recomputed(kept) <= recomputed(today) / 4
    assert kept.end_s <= 1.03 * today.end_s
    assert max(outcome.admissions for outcome in kept.outcomes) <= 4
    assert max(kept.gaps["all"].seconds) < 2 < max(today.gaps["all"].seconds)
