"""Where the time of a request went: its parts are what happened to it, and add up to its time."""

from typing import Any

import pytest
from factory import ask, greedy, own_tokens, steady, timeline

from quartet.simulator.driver import simulate
from quartet.simulator.presets import DEFAULT_PRESET, preset
from quartet.simulator.record import Outcome
from quartet.simulator.scenarios import make_scenario
from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Written
from quartet.wire.ids import Rid
from tests.support.core_rig import CoreRig


def tick_to_the_end(rig: CoreRig) -> None:
    """One step a second."""
    while rig.steps:
        rig.now += 1.0
        rig.step()


def parts(rig: CoreRig, rid: Rid) -> dict[tuple[str, str], float]:
    """Return the parts of a request by name and setback; they add up to its time."""
    told = timeline(rig, rid)
    found = {(part["part"], part.get("after", "")): part["seconds"] for part in told["parts"]}
    assert sum(found.values()) == pytest.approx(told["total_s"], abs=1e-5)
    assert all(seconds > 0 for seconds in found.values())
    return found


def test_a_request_waits_for_a_slot_and_is_computed() -> None:
    """Two steps are in flight, so what is admitted waits for the one before it."""
    rig = CoreRig(pages=64, page_size=4, slots=1, chunked_prefill_size=8)
    rig.submit([1, 2], params=greedy(6))
    rid = rig.submit(own_tokens(2, 20), params=greedy(5))
    tick_to_the_end(rig)
    found = parts(rig, rid)
    assert found["prefill", ""] == 3.0 and found["decode", ""] == 4.0
    assert set(found) <= {("queued_for_slot", ""), ("queued_for_step", ""), ("prefill_waits", ""), *found}
    assert found["queued_for_slot", ""] >= 4.0


def test_output_stands_still_for_the_prompt_of_another() -> None:
    """A prefill step without rows stalls what decodes; in a mixed step rows take what they took alone."""
    rig = CoreRig(pages=200, page_size=4, chunked_prefill_size=8)
    rid = rig.submit([1, 2], params=greedy(20))
    for _ in range(5):
        rig.now += 1.0
        rig.step()
    rig.submit(own_tokens(3, 32), params=greedy(1))
    tick_to_the_end(rig)
    found = parts(rig, rid)
    assert found["decode_stalled", ""] == 4.0 and found["decode", ""] == 19.0


def test_the_first_in_the_queue_waits_for_kv_and_the_next_behind_it() -> None:
    """Both wait because pages are missing, but not because of the same request."""
    rig = CoreRig(pages=16, page_size=4, slots=8, init_new_token_ratio=1.0)
    rig.submit(own_tokens(1, 8), params=steady(30))
    first, behind = (rig.submit(own_tokens(number, 20), params=greedy(4)) for number in (2, 3))
    tick_to_the_end(rig)
    assert ("queued_behind_kv", "") not in parts(rig, first) and parts(rig, first)["queued_for_kv", ""] > 5
    assert parts(rig, behind)["queued_behind_kv", ""] > 5


def test_a_retraction_and_what_follows_until_the_request_is_where_it_was() -> None:
    rig = CoreRig(pages=64, page_size=4, slots=4, test_retract=True)
    rids = [rig.submit(own_tokens(number, 8), params=steady(20)) for number in range(3)]
    tick_to_the_end(rig)
    retracted = [rid for rid in rids if timeline(rig, rid)["retractions"]]
    assert retracted
    for rid in retracted:
        found = parts(rig, rid)
        assert ("prefill", "retraction") in found and ("decode", "retraction") not in found


def test_a_lost_worker() -> None:
    rig = CoreRig()
    rid = rig.submit([1, 2, 3], params=greedy(10))
    for _ in range(4):
        rig.now += 1.0
        rig.step()
    rig.now += 0.5
    rig.worker_lost()
    rig.now += 7.0
    rig.worker_up()
    tick_to_the_end(rig)
    found = parts(rig, rid)
    assert found["step_lost", ""] == 0.5 and found["queued_for_worker", "restart"] == 7.0
    assert found["prefill", "restart"] == 1.0 and found["decode", ""] > 0


def test_time_before_the_scheduler_and_after_it() -> None:
    """The api process says when it took the request, how long its prompt took, and how late its client has read."""
    rig = CoreRig()
    rig.now = 10.0
    rid = rig.submit([1, 2], params=greedy(3), accepted_s=7.0, tokenizing_s=2.0)
    tick_to_the_end(rig)
    rig.send(Written(rid, 4.0))
    rig.send(Written(Rid(b"x" * 16), 4.0))
    found = parts(rig, rid)
    assert (found["accepting", ""], found["tokenizing", ""], found["writing", ""]) == (1.0, 2.0, 4.0)


@pytest.mark.parametrize("accepted_s", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_time_that_cannot_be_is_not_believed(accepted_s: float) -> None:
    rig = CoreRig()
    rig.now = 10.0
    rid = rig.submit([1, 2], params=greedy(3), accepted_s=accepted_s, tokenizing_s=1e9)
    tick_to_the_end(rig)
    assert ("tokenizing", "") not in parts(rig, rid)


def test_a_live_request_has_parts_so_far() -> None:
    rig = CoreRig(slots=1)
    rig.submit([1, 2], params=greedy(50))
    rid = rig.submit([1, 3], params=greedy(3))
    for _ in range(5):
        rig.now += 1.0
        rig.step()
    (told,) = ask(rig.scheduler, "timeline", rid.hex(), now=rig.now)["choices"]
    assert told["state"] == "waiting" and told["total_s"] == 5.0
    assert sum(part["seconds"] for part in told["parts"]) == 5.0
    assert any("slot in the batch" in line for line in told["summary"])
    tick_to_the_end(rig)
    parts(rig, rid)


SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]
MIXED: list[tuple[str, dict[str, Any]]] = [
    ("rag", {}),
    ("rag", {"enable_mixed_chunk": True, "schedule_policy": "lpm-aging"}),
    ("overload", {}),
    ("overload", {"test_retract": True}),
    ("priority", {"enable_priority_scheduling": True, "priority_scheduling_preemption_threshold": 0}),
    ("overload", {"step_order": "decode_first", "tbt_target_ms": 15.0}),
]


@pytest.mark.parametrize("requests", [pytest.param(40, id="few"), pytest.param(1700, marks=SLOW, id="ten_thousand")])
def test_parts_of_mixed_traces_add_up(requests: int) -> None:
    """Within 1 % each, and what no cause explains is less than that of all."""
    seen, total_s, other_s = 0, 0.0, 0.0
    for name, settings in MIXED:
        scenario = make_scenario(name, preset(DEFAULT_PRESET), 3, {"requests": str(requests)})
        run = simulate(scenario.requests, scenario.engine, SchedulerConfig(**settings))
        for outcome in run.outcomes:
            if outcome.is_finished:
                seen += 1
                total_s += check(outcome)
                other_s += sum(seconds for part, _, seconds in outcome.parts if part == "decode_other")
    assert seen == requests * len(MIXED) and other_s < 0.01 * total_s


def check(outcome: Outcome) -> float:
    """Check one request's parts; returns its time."""
    whole_s = outcome.end_s - outcome.arrival_s
    assert sum(seconds for _, _, seconds in outcome.parts) == pytest.approx(whole_s, rel=0.01)
    waited_s = sum(seconds for part, setback, seconds in outcome.parts if part.startswith("queued") and not setback)
    # Known without the meters: the device begins what is admitted after the step before it.
    assert waited_s <= (outcome.admitted_s - outcome.arrival_s) * 1.01 + 1e-6
    names = [(part, setback) for part, setback, _ in outcome.parts]
    assert len(set(names)) == len(names)
    if outcome.admissions == 1:
        before_s = sum(seconds for part, _, seconds in outcome.parts if not part.startswith("decode"))
        assert before_s == pytest.approx(outcome.first_token_s - outcome.arrival_s, rel=0.01, abs=1e-6)
    return whole_s
