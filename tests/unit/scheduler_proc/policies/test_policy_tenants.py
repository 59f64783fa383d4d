"""Shares of tenants: what is charged, whose turn it is, who is lifted, and the bound on the gap (POL-8 to POL-10)."""

import random

import msgspec
import pytest

from quartet.settings import build_config
from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.record import Run
from quartet.simulator.request import Workload
from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import ConfigError, InvariantViolation
from quartet.wire.tenants import parse_tenant_weights, tenant_named
from scheduler_proc.core.policies.tenants import MOST_IDLE_ACCOUNTS
from tests.support.core_rig import CoreRig

# Without mixed steps, so that a step is long enough for several tenants to wait at its end.
ENGINE = msgspec.structs.replace(preset("llama-8b-h100"), mixed_tokens=0)


def rig_of(**config: object) -> CoreRig:
    config.setdefault("tenant_weights", ("default=1",))
    return CoreRig(pages=200, **config)


def served(rig: CoreRig, name: str) -> float:
    assert rig.scheduler.queue.tenants is not None
    rig.scheduler.queue.tenants.largest_gap(rig.now)
    return rig.scheduler.queue.tenants.served().get(name, 0.0)


def admitted(rig: CoreRig) -> list[str]:
    """The tenants on board, in the order of admission."""
    rows = sorted(rig.scheduler.in_flight.by_generation.items())
    return [request.namespace[0] for _, request in rows]


def test_a_request_is_charged_its_prompt_its_outputs_and_the_time_on_board() -> None:
    """POL-8: 12 tokens at once, 4 for each output, a sixteenth for each second of a token that it holds."""
    rig = rig_of()
    rig.submit(list(range(1, 13)), 8, tenant="a")
    assert served(rig, "a") == 12
    rig.now += 16
    assert served(rig, "a") == 12 + 12
    rig.step()
    rig.step()
    outputs = len(rig.outputs(next(iter(rig.streams))[0]))
    assert outputs and served(rig, "a") == 24 + 4 * outputs


def test_weights_divide_what_is_charged() -> None:
    """POL-8: by the name, or by the key that the name stands for."""
    rig = rig_of(tenant_weights=("a=2", "default=0.5"))
    tenants = ("a", tenant_named("a"), "b")
    for tenant in tenants:
        rig.submit(list(range(1, 13)), 8, tenant=tenant)
    outputs = dict.fromkeys(tenants, 0)
    while not all(outputs.values()):
        rig.step()
        outputs = {stream.submit.tenant: len(stream.outputs) for stream in rig.streams.values()}
    prompts = [
        served(rig, tenant) - 4 * outputs[tenant] / weight for tenant, weight in zip(tenants, (2, 2, 0.5), strict=True)
    ]
    assert prompts == [6, 6, 24]


def test_what_is_cached_costs_nothing() -> None:
    """POL-8."""
    rig = rig_of()
    rig.submit(list(range(1, 14)), 4, tenant="a")
    rig.run()
    rig.submit([1], 30, tenant="b")
    again = rig.submit(list(range(1, 14)), 4, tenant="a")
    while not rig.outputs(again):
        rig.step()
    assert served(rig, "a") - 4 * len(rig.outputs(again)) == 1


def test_a_retracted_request_is_not_charged_twice() -> None:
    """POL-8: retracted in every third step, it pays for its prompt and for each output once."""
    paid = []
    for test_retract in (False, True):
        rig = rig_of(test_retract=test_retract, disable_radix_cache=True)
        for tenant in ("a", "b"):
            rig.submit(list(range(1, 13)), 20, tenant=tenant)
        while len(rig.outputs(next(iter(rig.streams))[0])) < 12:
            rig.step()
        outputs = {stream.submit.tenant: len(stream.outputs) for stream in rig.streams.values()}
        paid.append([served(rig, tenant) - 4 * outputs[tenant] for tenant in "ab"])
    assert paid == [[12, 12], [12, 12]]


def test_a_tenant_ahead_of_the_least_served_by_more_than_the_quantum_goes_after_it() -> None:
    """POL-9: however late it came."""
    rig = CoreRig(pages=200, slots=1, tenant_weights=("default=1",), tenant_quantum=10)
    rig.submit(list(range(1, 13)), 2, tenant="a")
    rig.submit([1, 2], 2, tenant="a")
    rig.submit([3, 4], 2, tenant="b")
    order = []
    while rig.step():
        order += [name for name in admitted(rig) if not order or order[-1] != name]
    assert order == ["a", "b", "a"]


def test_inside_the_quantum_the_policy_decides() -> None:
    """POL-9."""
    rig = CoreRig(pages=200, slots=1, tenant_weights=("default=1",), tenant_quantum=1000)
    rig.submit(list(range(1, 13)), 2, tenant="a")
    rig.submit([1, 2], 2, tenant="a")
    rig.submit([3, 4], 2, tenant="b")
    order = []
    while rig.step():
        order += admitted(rig)
    assert order.index("b") > len(order) // 2


@pytest.mark.parametrize("more", [{}, {"ttft_target_ms": 1.0}])
def test_urgency_goes_before_a_share_and_a_share_before_what_is_late(more: dict[str, float]) -> None:
    """POL-9, POL-6, POL-7."""
    rig = CoreRig(
        pages=200, slots=1, tenant_weights=("default=1",), tenant_quantum=0, enable_priority_scheduling=True,
        disable_priority_preemption=True, **more,
    )  # fmt: skip
    rig.submit(list(range(1, 13)), 2, tenant="a", priority=0)
    rig.submit([1, 2], 2, tenant="a", priority=0)
    rig.submit([3, 4], 2, tenant="b", priority=0)
    rig.submit([5, 6], 2, tenant="c", priority=5)
    order = []
    while rig.step():
        order += [name for name in admitted(rig) if not order or order[-1] != name]
    assert order == ["a", "c", "b", "a"]


def test_a_tenant_that_returns_is_lifted() -> None:
    """POL-10: what it has not used while it was away does not count for it."""
    rig = CoreRig(pages=200, slots=1, tenant_weights=("default=1",), tenant_quantum=5)
    for _ in range(6):
        rig.submit(list(range(1, 31)), 4, tenant="a")
    while served(rig, "a") < 100:
        rig.step()
    floor = served(rig, "a")
    rig.submit([1, 2], 2, tenant="b")
    assert 0 < floor - served(rig, "b") <= 5 + 30 + 4 * 4


def test_an_idle_engine_forgets_what_was_served() -> None:
    """POL-10."""
    rig = rig_of()
    rig.submit(list(range(1, 31)), 4, tenant="a")
    rig.run()
    rig.submit([1, 2], 2, tenant="a")
    assert served(rig, "a") == 2


def test_idle_tenants_are_forgotten() -> None:
    """POL-10: as many names as clients can think of take a bounded amount of memory."""
    rig = CoreRig(pages=200, slots=2, tenant_weights=("default=1",), tenant_quantum=0)
    for number in range(3 * MOST_IDLE_ACCOUNTS):
        rig.submit([1, 2, number % 50 + 1], 3, tenant=f"t{number}")
        for _ in range(3):
            rig.step()
    tenants = rig.scheduler.queue.tenants
    assert tenants is not None
    assert tenants.account_count < 2 * MOST_IDLE_ACCOUNTS


def test_inv9_finds_a_tenant_below_the_floor() -> None:
    """INV-9."""
    rig = CoreRig(pages=200, slots=1, tenant_weights=("default=1",), tenant_quantum=0)
    for tenant in ("a", "b"):
        for _ in range(4):
            rig.submit(list(range(1, 31)), 4, tenant=tenant)
    for _ in range(20):
        rig.step()
    tenants = rig.scheduler.queue.tenants
    assert tenants is not None
    rig.scheduler.audit()
    tenants.floors[0] += 1000
    with pytest.raises(InvariantViolation, match="INV-9"):
        rig.scheduler.audit()


def test_a_retracted_request_that_returns_before_its_turn_lifts_no_floor() -> None:
    """POL-10, RET-21: it overtakes a tenant that waits with less, which the audit finds in order."""
    rig = CoreRig(
        pages=200, slots=2, tenant_weights=("default=1",), tenant_quantum=0, retraction_keeps_kv=True, test_retract=True
    )
    streams = [rig.submit([own, *range(1, 13)], 20, tenant="a") for own in (1, 2)]
    while not all(rig.outputs(one) for one in streams):
        rig.step()
    last = rig.submit([1, 2], 4, tenant="b")
    while not rig.outputs(last):
        assert rig.step()


def crowd(seed: int) -> list[Workload]:
    """Two light tenants, and one that asks for more than the engine can do."""
    rng = random.Random(seed)
    found, shapes = list[Workload](), {"heavy": 100.0, "light": 2.0, "slow": 1.0}
    for tenant, rate in shapes.items():
        at_s = 0.0
        while at_s < 20.0:
            at_s += rng.expovariate(rate)
            output = rng.randrange(1, 100)
            one = Workload(arrival_s=at_s, max_tokens=output, output_tokens=output, own_tokens=800, tenant=tenant)
            found.append(one)
    return sorted(found, key=lambda one: one.arrival_s)


def p99_of_light(run: Run) -> float:
    waits = sorted(one.first_token_s - one.arrival_s for one in run.outcomes if one.request.tenant != "heavy")
    return waits[len(waits) * 99 // 100]


@pytest.mark.parametrize("policy", ["lpm-aging", "fcfs"])
def test_one_tenant_at_many_times_its_rate_costs_the_others_little(policy: str) -> None:
    """POL-9, INV-9: and the engine nothing."""
    requests = crowd(1)
    plain = SchedulerConfig(schedule_policy=policy, max_queued_requests=1 << 30)
    shared = SchedulerConfig(
        schedule_policy=policy, max_queued_requests=1 << 30, tenant_weights=("default=1",), tenant_quantum=2048
    )
    alone = simulate([one for one in requests if one.tenant != "heavy"], ENGINE, plain)
    before, after = simulate(requests, ENGINE, plain), simulate(requests, ENGINE, shared)
    assert p99_of_light(before) > 5 * p99_of_light(after)
    # The steps that it finds on the device hold a full chunk of prompts each.
    assert p99_of_light(after) < p99_of_light(alone) + 1.0
    assert before.end_s > 0.97 * after.end_s
    stay_s = max(one.end_s - one.entered_s[0] for one in after.outcomes)
    slots = sum(sorted((one.request.max_tokens for one in after.outcomes), reverse=True)[: ENGINE.max_slots])
    bound = 2048 + shared.max_prefill_tokens + 800 + 4 * slots + ENGINE.kv_tokens * stay_s / 16
    assert 0 < after.largest_service_gap <= bound


@pytest.mark.parametrize("wrong", ["a", "=1", "a=0", "a=-1", "a=nan", "a=inf", "a=1,a=2"])
def test_weights_that_make_no_sense_are_refused(wrong: str) -> None:
    """CFG-1."""
    with pytest.raises(ConfigError, match="--tenant-weights"):
        build_config({"scheduler.tenant_weights": wrong}, {})


def test_a_key_is_named_by_its_digest_since_settings_are_shown() -> None:
    """CFG-1."""
    with pytest.raises(ConfigError, match=tenant_named("secret")) as caught:
        build_config({"scheduler.tenant_weights": "secret=2", "server.api_key": ["secret"]}, {})
    assert "secret=2" not in str(caught.value)


def test_levels_and_shares_do_not_go_together() -> None:
    """CFG-1."""
    with pytest.raises(ConfigError, match="multi:"):
        build_config({"scheduler.tenant_weights": "a=2", "scheduler.schedule_policy": "multi:lpm,fcfs"}, {})


def test_names_may_hold_what_separates() -> None:
    assert parse_tenant_weights(["a=b=2", "c=1e1,d=3"]) == {"a=b": 2.0, "c": 10.0, "d": 3.0}
