"""Preemption of running requests by priority: PRE-1 to PRE-7, ADM-12, examples X1 to X9."""

import random

import pytest
from factory import Bench, Room, adder, events, greedy, own_tokens, request, steady

from quartet.wire.config import SchedulerConfig
from quartet.wire.ids import Rid
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.retraction import pick_preempted
from tests.support.core_rig import CoreRig

PRIORITY = {"enable_priority_scheduling": True}


def victims(
    newcomer: tuple[int, int, int | None],
    avail: int = 300,
    num_computed_tokens: tuple[int, int, int] = (0, 0, 0),
    needs_slot: bool = False,
    priorities: tuple[int | None, int | None, int | None] = (0, 5, 0),
    **config: object,
) -> list[str]:
    """Return which requests give way to (I, M, priority) among r1, r2, r3 of section 8.7."""
    settings = SchedulerConfig(**PRIORITY, **config)  # type: ignore[arg-type]
    running = []
    for number, (max_new, output, priority) in enumerate(zip((100, 200, 80), (20, 0, 0), priorities, strict=True)):
        made = request(9, output, max_new, number + 1, priority, settings)
        made.lease.num_computed_tokens = num_computed_tokens[number]
        running.append(made)
    budget = adder(Room(avail), running, **PRIORITY)
    assert budget.total_offset == 360
    prompt, max_new, priority = newcomer
    wanted = request(prompt, 0, max_new, 9, priority, settings)
    return [f"r{made.qseq}" for made in pick_preempted(wanted, running, budget, settings, needs_slot)]


COMPAT = {"preempt_accounting": "compat"}


def test_x1_worst_then_newest() -> None:
    """X1, PRE-2, PRE-4."""
    assert victims((50, 100, 20), **COMPAT, needs_slot=True) == ["r3", "r1", "r2"]  # type: ignore[arg-type]


def test_x2_the_threshold_is_strict() -> None:
    """X2, PRE-3: 10 - 0 is not more than 10."""
    assert victims((50, 100, 10), **COMPAT) == []  # type: ignore[arg-type]


def test_x3_all_or_nothing() -> None:
    """X3, PRE-5: r3 and r1 give 160 of 210."""
    assert victims((50, 100, 11), **COMPAT) == []  # type: ignore[arg-type]


def test_x4_one_victim_for_the_slot() -> None:
    """X4, PRE-4: KV suffices."""
    assert victims((50, 100, 20), 1000, **COMPAT, needs_slot=True) == ["r3"]  # type: ignore[arg-type]
    assert victims((50, 100, 20), 1000, **COMPAT) == []  # type: ignore[arg-type]


def test_x5_too_little_to_gain() -> None:
    """X5, PRE-5."""
    assert victims((50, 300, 20), **COMPAT) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("newcomer", [-(10**18), 0, 5])
def test_x6_a_request_without_a_priority_is_always_eligible(newcomer: int) -> None:
    """X6, PRI-1: 2^63 away from every other, without overflow."""
    found = victims((50, 100, newcomer), 300, needs_slot=True, priorities=(None, None, None), **COMPAT)  # type: ignore[arg-type]
    assert found == ["r3", "r2"]


HELD = (30, 60, 200)


def test_x7_what_a_victim_holds_counts() -> None:
    """X7, PRE-4: need 211, r3 gives 80 + 200."""
    assert victims((50, 100, 20), num_computed_tokens=HELD) == ["r3"]


@pytest.mark.parametrize(("priority", "expected"), [(11, ["r3"]), (10, [])])
def test_x8_the_threshold_in_accurate_mode(priority: int, expected: list[str]) -> None:
    """X8, PRE-3."""
    assert victims((50, 100, priority), num_computed_tokens=HELD) == expected


def test_x9_two_of_three() -> None:
    """X9, PRE-4: need 351, r3 gives 280, r1 110."""
    assert victims((50, 240, 11), num_computed_tokens=HELD) == ["r3", "r1"]


def bench_of_x7(slots: int = 8, **config: object) -> Bench:
    bench = Bench(pages=300 + sum(HELD), slots=slots, init_new_token_ratio=1.0, **PRIORITY, **config)  # type: ignore[arg-type]
    for number, (max_new, output, priority) in enumerate(((100, 20, 0), (200, 0, 5), (80, 0, 0))):
        prompt = HELD[number] - output
        bench.run(f"r{number + 1}", prompt, output, max_new, num_computed_tokens=HELD[number], priority=priority)
    assert bench.kv.pool.available_tokens == 300
    return bench


@pytest.mark.parametrize(
    ("max_new", "priority", "preempted", "remaining"), [(100, 20, "r3", 69), (240, 11, "r3 r1", 39), (100, 10, "", 0)]
)
def test_x7_x9_the_requester_is_admitted_in_the_same_pass(
    max_new: int, priority: int, preempted: str, remaining: int
) -> None:
    """X7, X8, X9, PRE-1(b), PRE-6, PRE-7, PR-12: 220 > 151 and 330 > 291, then the newcomer is charged."""
    bench = bench_of_x7()
    newcomer = bench.wait("new", 50, 0, max_new, priority=priority)
    batch = bench.form(1)
    if preempted:
        assert [made.rid for made in batch.requests] == [newcomer.rid]
        assert bench.waiting() == preempted
        reserved = sum(made.remaining_tokens for made in bench.batch.running.values())
        # The budget also holds back one page beside the newcomer's tokens.
        assert bench.kv.reachable_tokens() - reserved - 1 == remaining
    else:
        assert not batch.requests and bench.waiting() == "new"


def test_pre1_for_want_of_a_slot() -> None:
    """PRE-1(a), ADM-2: all slots are taken, KV would do; one makes way, and its slot is used."""
    bench = Bench(pages=1000, slots=2, **PRIORITY)  # type: ignore[arg-type]
    bench.run("old", 10, 5, 20, priority=0)
    bench.run("newer", 10, 5, 20, priority=0)
    bench.wait("urgent", 10, 0, 20, priority=11)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("old urgent", "newer")


@pytest.mark.parametrize("config", [{}, {**PRIORITY, "disable_priority_preemption": True}])
def test_pre1_preemption_can_be_off(config: dict[str, bool]) -> None:
    """PRE-1: without priority scheduling, or without preemption, every request keeps its place."""
    bench = Bench(pages=1000, slots=1, **config)  # type: ignore[arg-type]
    bench.run("old", 10, 5, 20, priority=0)
    bench.wait("urgent", 10, 0, 20, priority=100)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("old", "urgent")


def test_pre2_neither_the_chunked_request_nor_one_admitted_in_this_pass() -> None:
    """PRE-2, STEP-4, PR-16: the only candidates are rows of the batch; the requester is none of them."""
    rig = CoreRig(pages=60, page_size=4, slots=1, chunked_prefill_size=8, **PRIORITY)
    chunked = rig.submit(own_tokens(1, 60), params=greedy(2), priority=0)
    urgent = rig.submit(own_tokens(2, 9), params=greedy(2), priority=100)
    while rig.scheduler._batch.chunked is not None:
        assert rig.scheduler._batch.chunked.rid == chunked
        rig.step()
    rig.run()
    # Once its prompt was computed it could be preempted like any other.
    assert len(rig.outputs(chunked)) == len(rig.outputs(urgent)) == 2


def test_pre6_a_victim_queues_at_the_tail_and_keeps_its_output() -> None:
    """PRE-6, RET-6, RET-7."""
    bench = bench_of_x7()
    victim = next(made for made in bench.batch.running.values() if bench.names[id(made)] == "r3")
    victim.output_ids += [7, 8]
    bench.wait("new", 50, 0, 100, priority=20)
    entered = victim.qseq
    bench.form(1)
    assert bench.waiting() == "r3"
    assert victim.qseq > entered and victim.seq == 3 and victim.timeline.retractions == 1
    assert (victim.output_ids, victim.lease.pages, victim.lease.num_computed_tokens, victim.slot) == ([7, 8], [], 0, -1)


def test_pre6_the_victims_own_reservation_is_given_back() -> None:
    """PRE-6: not the newcomer's (sglang #13111)."""
    running = [request(9, 0, 300, 1), request(9, 0, 40, 2)]
    budget = adder(Room(1000), running, ratio=0.5)
    assert budget.total_offset == 170
    budget.forget_victim(running[0])
    assert budget.total_offset == 20


def test_adm12_a_preempted_request_is_queued_though_none_was_admitted() -> None:
    """ADM-12: compat takes victims that do not suffice; no request is lost."""
    bench = Bench(pages=200, init_new_token_ratio=1.0, **PRIORITY, **COMPAT)  # type: ignore[arg-type]
    prompt = own_tokens(50, 50)
    bench.cache(prompt)
    for name, priority in (("anchor", 100), ("victim", 0)):
        # Both stand on the same cached prefix, so the victim has nothing to give.
        bench.run(name, [*prompt, 1], 0, 60, num_computed_tokens=50, priority=priority)
    # 200 - 50 in the tree - 120 reserved leave 30: with the victim's 60 it is 90 = 30 + 60, and not less.
    bench.wait("new", 30, 0, 60, priority=50)
    batch = bench.form(1)
    assert not batch.requests
    assert (bench.running(), bench.waiting()) == ("anchor", "new victim")
    bench.scheduler.audit()


@pytest.mark.parametrize(
    "config",
    [
        {"chunked_prefill_size": -1},
        {"chunked_prefill_size": 8},
        {"slots": 2},
        {"reservation": "blocks"},
        {"reservation": "blocks", "reserve_basis": "full", "chunked_prefill_size": 8},
        {"reservation": "full"},
        {"disable_radix_cache": True, "chunked_prefill_size": -1},
    ],
)
def test_pre7_a_preemption_is_followed_by_the_admission_of_the_requester(config: dict[str, int]) -> None:
    """PRE-7: random arrivals in accurate mode; the request named as the cause is admitted in the same pass. Without the
    tree they ignore the end of sequence, which is tested in another way (ADM-10)."""
    make_params = steady if config.get("disable_radix_cache") else greedy
    draw = random.Random(1)
    slots = config.get("slots", 4)
    rig = CoreRig(
        **{"pages": 40, "page_size": 4, "priority_scheduling_preemption_threshold": 0, **PRIORITY, **config,
           "slots": slots},
    )  # type: ignore[arg-type]  # fmt: skip
    rids = []
    for _ in range(36):
        prompt = own_tokens(draw.randrange(4), draw.randrange(1, 40))
        rids.append(rig.submit(prompt, params=make_params(draw.randrange(1, 60)), priority=draw.randrange(6)))
        for _ in range(draw.randrange(25)):
            rig.now += 1.0
            rig.step()
        rig.now += 1.0
    rig.run()
    preempted = [event for rid in rids for event in when(rig, rid, "preempted")]
    assert len(preempted) >= 4
    for at_s, by in preempted:
        admitted = [at for at, _ in when(rig, Rid(bytes.fromhex(by)), "admitted")]
        assert at_s in admitted


def test_pre7_no_preemption_for_want_of_input_budget() -> None:
    """PRE-7, ADM-4: the second newcomer must wait for the next pass anyway."""
    bench = Bench(pages=1000, slots=2, max_prefill_tokens=100, **PRIORITY)  # type: ignore[arg-type]
    bench.run("victim", 10, 5, 20, priority=0)
    bench.wait("first", 60, 0, 20, priority=60)
    bench.wait("second", 40, 0, 20, priority=50)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("victim first", "second")


def test_pre7_no_preemption_for_what_isolation_withholds() -> None:
    """PRE-7, 4.7: 60 tokens belong to a more urgent prefix; the victim's 30 do not make up for them."""
    bench = Bench(pages=100, init_new_token_ratio=1.0, cache_priority_isolation=True, **PRIORITY)  # type: ignore[arg-type]
    bench.cache(own_tokens(40, 60), -90)
    bench.run("anchor", 10, 1, 6, priority=80)
    bench.run("victim", 14, 1, 16, priority=0)
    # 25 available + 60 evictable - 20 reserved = 65 < 76; with the victim's 29 it would be 94, but 60 are withheld.
    bench.wait("new", 65, 0, 10, priority=50)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("anchor victim", "new")


def when(rig: CoreRig, rid: Rid, what: str) -> list[tuple[float, str]]:
    """Return (absolute time, by whom) of a request's events."""
    arrived = next(made.arrived_s for made in rig.scheduler._table.ended.facts(RequestName(rid.hex(), None)))
    return [(round(arrived + event["at_s"], 3), event.get("by", "")) for event in events(rig, rid, what)]
