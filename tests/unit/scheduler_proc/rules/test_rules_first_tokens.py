"""POL-7 and PRI-5: what is urgent for the time to first token that is aimed at, and what is told it is too late."""

import random
from typing import Any

import pytest
from factory import greedy, own_tokens

from quartet.settings import build_config
from quartet.simulator.driver import simulate
from quartet.simulator.presets import DEFAULT_PRESET, preset
from quartet.simulator.record import Outcome
from quartet.simulator.request import Workload
from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import ConfigError
from quartet.wire.ids import Rid
from scheduler_proc.core.first_tokens import HOPELESS_EVERY
from tests.support.core_rig import CoreRig


def step(rig: CoreRig, seconds: float = 0.1, count: int = 1) -> None:
    for _ in range(count):
        rig.now += seconds
        rig.step()


def overloaded(rig: CoreRig, prompts: int = 40) -> list[Rid]:
    """A queue of prompts of 100 tokens, of which one is computed in each tenth of a second."""
    rids = [rig.submit(own_tokens(number + 1, 100), params=greedy(1)) for number in range(prompts)]
    step(rig, count=10)
    return rids


def rig_with(**settings: Any) -> CoreRig:
    return CoreRig(pages=400, page_size=4, slots=8, chunked_prefill_size=100, **settings)


def test_pol7_what_can_still_make_it_goes_before_what_cannot() -> None:
    """POL-7: of a queue that takes 4 s, at a target of 1 s, late arrivals are served and the first of the rest wait."""
    rig = rig_with(ttft_target_ms=1000.0)
    early = overloaded(rig)
    late = [rig.submit(own_tokens(100 + number, 100), params=greedy(1)) for number in range(4)]
    step(rig, count=8)
    assert all(rig.streams[rid, 0].ending == "length" for rid in late)
    assert any(rig.streams[rid, 0].ending is None for rid in early)
    rig.run()
    assert all(rig.streams[rid, 0].ending == "length" for rid in early)


def test_pol7_one_that_cannot_make_it_waits_for_a_bounded_number_of_passes() -> None:
    """POL-7: every eighth pass that admits begins with the oldest, while others keep coming."""
    rig = rig_with(ttft_target_ms=1000.0)
    early = overloaded(rig, 20)
    left = [rid for rid in early if rig.streams[rid, 0].ending is None]
    for number in range((len(left) + 2) * HOPELESS_EVERY):
        rig.submit(own_tokens(100 + number, 100), params=greedy(1))
        step(rig)
    assert all(rig.streams[rid, 0].ending == "length" for rid in left)


def test_pol7_is_within_a_class() -> None:
    """POL-7: an urgent request of a worse class does not go before a better one."""
    rig = rig_with(ttft_target_ms=100_000.0, enable_priority_scheduling=True, disable_priority_preemption=True)
    overloaded(rig, 30)
    better = rig.submit(own_tokens(100, 100), params=greedy(1), priority=5)
    rig.submit(own_tokens(101, 100), params=greedy(1), priority=1, accepted_s=0.0)
    step(rig, count=3)
    assert rig.streams[better, 0].ending == "length"


def test_pri5_what_would_come_too_late_is_refused_at_once_and_what_waits_too_long_is_failed() -> None:
    """PRI-5: and nothing is refused while the speed of the queue is not known."""
    rig = rig_with(ttft_target_ms=1000.0, shed_hopeless=True)
    rids = overloaded(rig)
    assert not any(rig.streams[rid, 0].ending == "overloaded" for rid in rids[:8])
    refused = rig.submit(own_tokens(200, 100), params=greedy(1))
    assert rig.streams[refused, 0].ending == "overloaded"
    deadline_s = rig.scheduler.next_deadline()
    assert deadline_s is not None and deadline_s <= rig.now + 1.0
    rig.run()
    step(rig, count=30)
    taken = rig.submit(own_tokens(300, 100), params=greedy(1))
    rig.run()
    assert rig.streams[taken, 0].ending == "length"


def test_pri5_a_stream_that_was_retracted_is_not_shed() -> None:
    """PRI-5: it has had its first token."""
    rig = CoreRig(pages=64, slots=4, test_retract=True, ttft_target_ms=500.0, shed_hopeless=True)
    rids = [rig.submit(own_tokens(number, 8), params=greedy(30)) for number in range(3)]
    while rig.steps:
        step(rig)
    assert [rig.streams[rid, 0].ending for rid in rids] == ["length"] * 3


def test_pri5_needs_a_target() -> None:
    with pytest.raises(ConfigError, match="--shed-hopeless needs --ttft-target-ms"):
        build_config({"scheduler.shed_hopeless": "true"}, {})


def made_it(outcomes: list[Outcome], target_s: float) -> int:
    return sum(one.first_token_s >= 0 and one.first_token_s - one.arrival_s <= target_s for one in outcomes)


def test_pri5_under_overload_more_requests_make_it() -> None:
    """POL-7, PRI-5: at twice what the engine takes, first come first served lets hardly any make it."""
    rng, now, requests = random.Random(5), 0.0, []
    for _ in range(900):
        now += rng.expovariate(45.0)
        length = min(int(rng.lognormvariate(7.0, 0.7)), 8000)
        requests.append(Workload(arrival_s=now, max_tokens=40, output_tokens=40, own_tokens=length))
    engine = preset(DEFAULT_PRESET)
    plain, ordered, shed = (
        simulate(requests, engine, SchedulerConfig(max_queued_requests=10_000, **settings)).outcomes  # type: ignore[arg-type]
        for settings in ({}, {"ttft_target_ms": 2000.0}, {"ttft_target_ms": 2000.0, "shed_hopeless": True})
    )
    assert made_it(ordered, 2.0) > 1.5 * made_it(plain, 2.0)
    assert made_it(shed, 2.0) > 1.5 * made_it(plain, 2.0)
    refused = [one for one in shed if one.ending == "overloaded"]
    assert all(one.end_s - one.arrival_s <= 2.001 for one in refused)
    # What is taken makes it, but for some.
    assert made_it(shed, 2.0) > 0.95 * (len(shed) - len(refused))
