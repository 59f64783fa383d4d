"""What priority means: PRI-1, PRI-2, the full queue PRI-4, cache preemption 4.7, examples P12 and C1."""

import pytest
from factory import Bench, greedy, own_tokens, request

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Rejected, SamplingParams, Submit, pack_ids
from quartet.wire.ids import Rid
from quartet.wire.urgency import urgency_of
from scheduler_proc.core.request import RequestState
from tests.support.core_rig import CoreRig, Stream

PRIORITY = {"enable_priority_scheduling": True}
LOW_FIRST = {**PRIORITY, "schedule_low_priority_values_first": True}


@pytest.mark.parametrize(
    ("config", "default", "priority", "expected"),
    [
        (PRIORITY, None, 7, -7),
        (LOW_FIRST, None, 7, 7),
        (PRIORITY, None, None, 1 << 63),
        (LOW_FIRST, None, None, (1 << 63) - 1),
        (PRIORITY, 3, None, -3),
        (LOW_FIRST, 3, None, 3),
        ({}, None, 7, 0),
    ],
)
def test_pri1_urgency(config: dict[str, bool], default: int | None, priority: int | None, expected: int) -> None:
    """PRI-1, PRI-2: smaller is more urgent; no priority is the worst; off, a priority counts for nothing."""
    assert urgency_of(priority, SchedulerConfig(default_priority_value=default, **config)) == expected


def test_pri1_a_priority_can_be_refused_while_they_are_off() -> None:
    """PRI-1: 503 only if asked for, and only for requests that carry one."""
    rig = CoreRig(abort_on_priority_when_disabled=True)
    assert rig.streams[rig.submit([1, 2], 4, priority=3), 0].ending == "priority_disabled"
    assert rig.streams[rig.submit([1, 2], 4), 0].ending is None
    rig = CoreRig()
    assert rig.streams[rig.submit([1, 2], 4, priority=3), 0].ending is None


@pytest.mark.parametrize(("config", "first"), [(PRIORITY, 9), (LOW_FIRST, 1)])
def test_pri2_the_sign_decides_which_request_runs_first(config: dict[str, bool], first: int) -> None:
    """PRI-2."""
    rig = CoreRig(slots=1, disable_priority_preemption=True, **config)
    rig.submit([1, 2, 3], 3, priority=5)
    rids = {priority: rig.submit([priority, 2, 3], params=greedy(3), priority=priority) for priority in (1, 9)}
    rig.now = 1.0
    rig.run()
    ended = [made.rid for made in rig.scheduler._table.ended.facts()]
    assert ended[1] == rids[first]


# The queue limit


def full_queue(**config: bool) -> tuple[CoreRig, dict[str, Rid]]:
    """A p2, B p0, C p0 wait behind a running request; three may."""
    rig = CoreRig(slots=1, max_queued_requests=3, disable_priority_preemption=True, **config)
    rig.submit([1, 2, 3], params=greedy(50), priority=5)
    return rig, {name: rig.submit([9, 9, 9], 4, priority=p) for name, p in (("A", 2), ("B", 0), ("C", 0))}


def ended(rig: CoreRig, rids: dict[str, Rid]) -> dict[str, str]:
    return {name: rig.streams[rid, 0].ending or "" for name, rid in rids.items() if rig.streams[rid, 0].ending}


@pytest.mark.parametrize(
    ("config", "newcomer", "gone"),
    [(PRIORITY, ("D", 1), "C"), (PRIORITY, ("E", 0), "E"), (LOW_FIRST, ("D", 1), "A"), ({}, ("F", 99), "F")],
)
def test_p12_the_worst_makes_way_or_the_newcomer_goes(
    config: dict[str, bool], newcomer: tuple[str, int], gone: str
) -> None:
    """P12, PRI-4: strictly more urgent, of equals the newest leaves; without priorities the newcomer is refused."""
    rig, rids = full_queue(**config)
    rids[newcomer[0]] = rig.submit([8, 8, 8], 4, priority=newcomer[1])
    assert ended(rig, rids) == {gone: "queue_full"}
    rig.run()
    assert rig.scheduler.is_idle()


def test_pri4_the_status_is_503_with_a_hint_when_to_retry() -> None:
    """PRI-4."""
    rig, _ = full_queue()
    refusal = [
        frame
        for _, frame in rig.scheduler.handle(
            Submit(Rid(b"x" * 16), 0, 0, "api-0", "detok-0", pack_ids([1]), b"", SamplingParams(max_new_tokens=1)), 0.0
        )
        if isinstance(frame, Rejected)
    ]
    assert [(frame.status, frame.code) for frame in refusal] == [(503, "queue_full")]
    assert refusal[0].retry_after_s


def test_pri4_a_limit_of_zero_queues_no_request() -> None:
    """PRI-4."""
    rig = CoreRig(max_queued_requests=0)
    assert rig.streams[rig.submit([1, 2], 4), 0].ending == "queue_full"


def test_pri4_a_limit_in_prompt_tokens() -> None:
    """PRI-4: prompts of 40 tokens, at most 100 waiting; a prompt of 300 is taken when nothing else waits."""
    rig = CoreRig(pages=400, slots=1, max_queued_tokens=100)
    rids = [rig.submit(own_tokens(number, 40), 4) for number in range(4)]
    assert [rig.streams[rid, 0].ending for rid in rids] == [None, None, None, "queue_full"]
    rig.run()
    long = [rig.submit(own_tokens(number, 300), 4) for number in (7, 8, 9)]
    assert [rig.streams[rid, 0].ending for rid in long] == [None, None, "queue_full"]
    rig.run()
    assert rig.streams[long[1], 0].ending == "length"


def test_pri4_as_many_give_way_as_the_tokens_of_an_urgent_request_need() -> None:
    """PRI-4: three of 40 tokens for one of 90, the newest of the least urgent first; none for one that is no better."""
    rig = CoreRig(pages=400, slots=1, max_queued_tokens=120, **PRIORITY)  # type: ignore[arg-type]
    rig.submit(own_tokens(1, 8), 40, priority=9)
    waiting = [rig.submit(own_tokens(number, 40), 4, priority=0) for number in range(2, 5)]
    assert rig.streams[rig.submit(own_tokens(8, 90), 4, priority=0), 0].ending == "queue_full"
    urgent = rig.submit(own_tokens(9, 90), 4, priority=5)
    assert [rig.streams[rid, 0].ending for rid in (*waiting, urgent)] == ["queue_full"] * 3 + [None]


def test_pri4_a_second_attempt_is_exempt() -> None:
    """PRI-4: it is queued above the limit and does not count towards it."""
    rig, rids = full_queue(**PRIORITY)
    rid = Rid(b"again".rjust(16))
    again = Submit(rid, 0, 1, "api-0", "detok-0", pack_ids([9, 9]), b"", SamplingParams(max_new_tokens=4), -50)
    rig.streams[rid, 0] = Stream(again)
    rig.send(again)
    assert not ended(rig, rids) and len(rig.scheduler._queue.waiting) == 4
    # Nor is it the one that a more urgent newcomer displaces, though it is the least urgent.
    rids["again"] = rid
    rids["D"] = rig.submit([7, 7], 4, priority=1)
    assert ended(rig, rids) == {"C": "queue_full"}


# Cache preemption


def cached() -> Bench:
    """Leaves A(p1, 4 tokens, parent X p1 of 2), B(p1, 3), C(p4, 6), D(p5, 8), E(p0, 5, locked); oldest C, B, A."""
    bench = Bench(pages=31, **PRIORITY)  # type: ignore[arg-type]
    x = own_tokens(1, 2)
    e = own_tokens(5, 5)
    bench.cache(own_tokens(3, 6), -4)
    bench.cache(own_tokens(2, 3), -1)
    bench.cache(x, -1)
    bench.cache([*x, *own_tokens(6, 4)], -1)
    bench.cache(own_tokens(4, 8), -5)
    bench.cache(e, 0)
    bench.kv.tree.lock(bench.kv.tree.match(pack_ids(e), ("", ""))[1])
    bench.kv.tree.match(pack_ids([*x, *own_tokens(6, 4)]), ("", ""))
    assert (bench.kv.pool.available_tokens, bench.kv.tree.evictable_tokens) == (3, 23)
    return bench


@pytest.mark.parametrize(("need", "gone"), [(3, ""), (10, "BA"), (12, "BAX"), (14, "BAXC"), (19, None)])
def test_c1_cache_preemption(need: int, gone: str | None) -> None:
    """C1, 4.7: for a p5 newcomer with 3 tokens available; D is as urgent, E is locked."""
    bench = cached()
    sizes = {"A": 4, "B": 3, "C": 6, "X": 2}
    freed = bench.kv.tree.evict_for_priority(-5, need, 3)
    assert (None if freed is None else len(freed)) == (None if gone is None else sum(sizes[name] for name in gone))
    left = {len(node.pages) for node in bench.kv.tree.nodes()}
    assert {8, 5} <= left
    assert {name for name, size in sizes.items() if size not in left} == set(gone or "")


@pytest.mark.parametrize(("isolates", "urgency", "room"), [(False, -5, True), (True, -5, True), (True, -1, False)])
def test_4_7_what_follows_where_less_urgent_prefixes_do_not_suffice(isolates: bool, urgency: int, room: bool) -> None:
    """4.7: plain eviction, unless isolation keeps more urgent prefixes; alone, isolation is no obstacle."""
    bench = cached()
    bench.kv._isolates = isolates
    wanted = request(9)
    wanted.urgency = urgency
    # p5 may take its equals as well: 3 + 15 + 8.
    assert bench.kv.make_room_for(wanted.urgency, 26, is_alone=False) is room
    assert cached().kv.make_room_for(wanted.urgency, 26, is_alone=True)


def test_4_7_isolation_hides_more_urgent_prefixes_from_admission() -> None:
    """4.7: `evict` seen by a request counts nodes not more urgent than itself."""
    bench = Bench(pages=100, cache_priority_isolation=True, **PRIORITY)  # type: ignore[arg-type]
    bench.cache(own_tokens(4, 60), -5)
    bench.run("runs", 10, 1, 10, priority=9)
    bench.wait("new", 30, 0, 10, priority=0)
    assert not bench.form(1).requests
    bench.batch.leave(next(iter(bench.batch.running.values())), RequestState.WAITING)
    assert len(bench.form(1).requests) == 1


def test_4_7_off_without_priorities() -> None:
    """4.7: then eviction is by the strategy alone, whatever urgency the nodes were given."""
    bench = Bench(pages=20)
    bench.cache(own_tokens(1, 10), -5)
    bench.cache(own_tokens(2, 10), 9)
    wanted = request(9)
    assert bench.kv.make_room_for(wanted.urgency, 5, is_alone=False)
    (left,) = bench.kv.tree.nodes()
    assert left.urgency == 9
