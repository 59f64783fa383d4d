"""Sessions: what is a turn of one, whose turn goes first, how long KV is held, and what ends that (SES-1 to SES-5)."""

import math

import pytest

from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.request import Workload
from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Query
from quartet.wire.ids import Rid
from scheduler_proc.core.request import Request
from scheduler_proc.core.session import Session
from scheduler_proc.core.sessions import MOST_HOLD_S, best_hold_s
from tests.support.core_rig import CoreRig

BOTH = {"schedule_policy": "session", "radix_eviction_policy": "session"}
STEP_S = 0.01


def rig_of(**config: object) -> CoreRig:
    """A rig whose steps take time, so that what a prompt costs is known."""
    rig = CoreRig(**{"pages": 64, **BOTH, **config})
    for length in range(1, 13):
        rig.submit(list(range(1, 4 * length)), 4)
        run(rig)
    return rig


def run(rig: CoreRig) -> None:
    """Run until nothing is in flight; a step takes longer the more it computes."""
    while rig.steps:
        rig.now += STEP_S + 0.001 * sum(chunk.length for chunk in rig.steps[0].chunks)
        rig.step()


def turn(rig: CoreRig, prompt: list[int], session: str = "", max_new: int = 8) -> Rid:
    """Submit a turn and run it to its end."""
    rid = rig.submit(prompt, max_new, session_id=session)
    run(rig)
    return rid


def session_of(rig: CoreRig, rid: Rid) -> Session | None:
    request = rig.scheduler._table.find(rid, 0)
    assert request is not None
    return request.session


def held_tokens(rig: CoreRig) -> int:
    return rig.scheduler.kv.tree.protected_tokens


def test_ses1_a_turn_is_known_by_its_session_id() -> None:
    """SES-1: of the same tenant and salt; another id, or another tenant, is another session."""
    rig = rig_of(slots=1)
    named = [("s", ""), ("s", ""), ("t", ""), ("s", "a")]
    rids = [rig.submit([5, 6, 7], 8, session_id=name, tenant=tenant) for name, tenant in named]
    sessions = [session_of(rig, rid) for rid in rids]
    assert sessions[0] is sessions[1] is not None
    assert len({id(one) for one in sessions}) == 3
    run(rig)


def test_ses1_without_an_id_the_prefix_tells() -> None:
    """SES-1: a prompt that begins with the whole sequence of an earlier request is its next turn."""
    rig = rig_of()
    before = rig.scheduler.snapshot()[1]["session_turns"]
    prompt = [90, 91, 92, 93]
    first = turn(rig, prompt)
    answer = rig.outputs(first)
    turn(rig, [*prompt[:-1], 80, *answer])
    assert rig.scheduler.snapshot()[1]["session_turns"] == before
    turn(rig, [*prompt, *answer, 70, 71])
    assert rig.scheduler.snapshot()[1]["session_turns"] == before + 1


def test_ses2_what_is_cached_goes_first_then_the_session_served_least() -> None:
    """SES-2: uncached prompt tokens and four for each output; a request without a session was served nothing."""
    rig = rig_of(slots=1, aging_share=1e-9)
    turn(rig, list(range(10, 40)), "long")
    turn(rig, list(range(40, 50)), "short", 1)
    running = rig.submit([60, 61], 8)
    waiting = {name: rig.submit([70, 71, index], 1, session_id=name) for index, name in enumerate(("long", "short"))}
    waiting["none"] = rig.submit([80, 81], 1)
    cached = list(range(40, 50))
    waiting["cached"] = rig.submit([*cached, 90], 1, session_id="long")
    order: list[str] = []
    names = {rid: name for name, rid in waiting.items()}
    while rig.steps:
        rig.step()
        order += [names[rid] for rid in names if rig.outputs(rid) and names[rid] not in order]
    assert rig.outputs(running) and order == ["cached", "none", "short", "long"]


def test_ses2_long_served_sessions_are_not_starved() -> None:
    """SES-2: the share of work of lpm-aging goes to the oldest requests."""
    rig = rig_of(slots=1)
    turn(rig, list(range(10, 40)), "long", 8)
    waiting = rig.submit([90, 91], 1, session_id="long")
    fresh = 0
    while not rig.outputs(waiting) and fresh < 400:
        rig.submit([100 + fresh, 7], 4)
        fresh += 1
        rig.step()
    assert rig.outputs(waiting) and fresh < 300


@pytest.mark.parametrize(
    ("gaps", "worth_s", "hold_s"),
    [
        ([1.0, 1.0, 1.0], 2.0, 1.25),
        ([1.0, 1.0, 1.0], 0.9, 0.0),
        # Holding for all costs (0.1 + 5) / 2 on average and gives 2; for the first alone 0.1 and gives 1.
        ([0.1, 5.0], 2.0, 0.125),
        ([0.1, 0.1, math.inf], 1.0, 0.125),
        ([math.inf, math.inf], 100.0, 0.0),
        ([50.0], 1000.0, MOST_HOLD_S),
        ([2 * MOST_HOLD_S], 1000.0, 0.0),
    ],
)
def test_ses3_kv_is_held_as_long_as_it_pays(gaps: list[float], worth_s: float, hold_s: float) -> None:
    """SES-3: t maximises worth * P(gap <= t) - E[min(gap, t)], with a margin of a quarter."""
    assert best_hold_s(gaps, worth_s) == pytest.approx(hold_s)


def test_ses3_what_holding_is_worth_follows_from_cost_and_pressure() -> None:
    """SES-3: the time to compute the KV again, over the share of the pool that it takes, and over how full that is."""
    rig = rig_of()
    ends = {}
    for name, beside in (("quiet", 0), ("crowded", 40)):
        if beside:
            rig.submit(list(range(200, 200 + 4 * beside)), 60)
            while not rig.scheduler._batch.running:
                rig.now += STEP_S
                rig.step()
        rid = rig.submit(list(range(300, 320)), 2, session_id=name)
        while rig.scheduler._table.find(rid, 0) is not None:
            rig.now += STEP_S
            rig.step()
        ((until_s, _),) = [rig.scheduler.kv.holds._held[key] for key in rig.scheduler.kv.holds._held]
        ends[name] = until_s - rig.now
        rig.scheduler.kv.holds.end_all()
    assert ends["quiet"] > 1.5 * ends["crowded"] > 0
    run(rig)


def test_ses4_a_hold_ends_with_the_next_turn_and_with_its_time() -> None:
    """SES-4: held pages count for no other request's room; the next turn finds them cached and takes the hold over."""
    rig = rig_of()
    prompt = list(range(10, 30))
    first = turn(rig, prompt, "s")
    assert held_tokens(rig) == 24 and rig.scheduler.kv.holds.next_end_s is not None
    room = rig.scheduler.kv.reachable_tokens()
    second = rig.submit([*prompt, *rig.outputs(first), 77], 1, session_id="s")
    run(rig)
    assert rig.streams[second, 0].outputs
    counts = rig.scheduler.snapshot()[1]
    assert counts["session_held_turns"] == 1 and room == rig.pages * rig.page_size - 24
    until_s = rig.scheduler.kv.holds.next_end_s
    assert until_s is not None
    rig.now = until_s
    turn(rig, [3])
    assert held_tokens(rig) == 0


def test_ses4_held_kv_keeps_a_newcomer_waiting_while_others_run() -> None:
    """SES-4, ADM-11: and it is admitted when the hold ends, though nothing has left the batch."""
    rig = rig_of(pages=32, reservation="full")
    turn(rig, list(range(10, 70)), "s", 4)
    assert held_tokens(rig) >= 60
    running = rig.submit([5], 40, session_id="t")
    newcomer = rig.submit(list(range(300, 330)), 4)
    for _ in range(4):
        rig.step()
    assert rig.outputs(running) and not rig.outputs(newcomer)
    rig.now = (rig.scheduler.kv.holds.next_end_s or 0) + 0.001
    for _ in range(6):
        rig.step()
    assert rig.outputs(newcomer) and rig.scheduler._table.find(running, 0) is not None
    run(rig)


def test_ses5_held_kv_gives_way_to_rows_and_to_a_request_alone() -> None:
    """SES-5: nothing is retracted, and no request waits for held KV alone."""
    rig = rig_of(pages=32)
    turn(rig, list(range(10, 70)), "s", 4)
    alone = turn(rig, list(range(300, 400)), max_new=10)
    assert len(rig.outputs(alone)) > 0 and held_tokens(rig) == 0
    turn(rig, list(range(10, 70)), "s", 4)
    growing = rig.submit([5, 6], 100)
    while rig.steps:
        rig.step()
    assert rig.outputs(growing) and rig.scheduler.snapshot()[1]["retractions"] == 0


def test_ses5_held_kv_gives_way_to_a_more_urgent_request() -> None:
    """SES-5: while others run; it preempts none of them, and what is held for its equals stays."""
    rig = rig_of(pages=32, reservation="full", enable_priority_scheduling=True)
    turn(rig, list(range(10, 70)), "s", 4)
    running = rig.submit([5], 40, session_id="t")
    equal = rig.submit(list(range(300, 330)), 4)
    for _ in range(4):
        rig.step()
    assert held_tokens(rig) >= 60 and not rig.outputs(equal)
    urgent = rig.submit(list(range(400, 430)), 4, priority=5)
    for _ in range(4):
        rig.step()
    assert rig.outputs(urgent) and rig.scheduler.snapshot()[1]["preemptions"] == 0
    assert rig.scheduler._table.find(running, 0) is not None
    run(rig)


def test_ses5_a_lost_worker_a_failed_step_and_a_flush_end_holds() -> None:
    """SES-5, INV-2, INV-6: the audit after each event finds every lock."""
    rig = rig_of()
    turn(rig, list(range(10, 40)), "s")
    rig.worker_lost()
    rig.worker_up()
    assert held_tokens(rig) == 0
    turn(rig, list(range(10, 40)), "s")
    assert held_tokens(rig) > 0
    rig.send(Query(1, "api-0", "flush"))
    assert held_tokens(rig) == 0 and rig.scheduler.kv.pool.available_tokens == rig.scheduler.kv.capacity_tokens
    turn(rig, list(range(10, 40)), "s", 4)
    rig.submit(list(range(10, 30)), 4)
    rig.fail_step()
    run(rig)


def test_only_policies_that_know_sessions_keep_any() -> None:
    """With the options off a session id changes nothing."""
    rig = CoreRig()
    seen: list[Request] = []
    rid = rig.submit(list(range(10, 30)), 4, session_id="s")
    seen += rig.scheduler._table.live()
    assert rig.scheduler._table.find(rid, 0) is seen[0] and seen[0].session is None
    rig.run()
    assert held_tokens(rig) == 0 and not rig.scheduler.snapshot()[1]["session_turns"]


def sessions(count: int, turns: int, gap_s: float) -> list[Workload]:
    """Sessions that grow by 512 tokens a turn; a turn is sent after the answer to the one before."""
    found = []
    for number in range(count):
        for index in range(turns):
            pages = [f"{number}.{page}" for page in range(32 * (index + 1))]
            found.append(
                Workload(
                    arrival_s=0.01 * number + 0.001 * index,
                    max_tokens=64,
                    output_tokens=64,
                    page_hashes=pages,
                    page_tokens=16,
                    prompt_tokens=16 * len(pages),
                    session=str(number),
                    gap_s=gap_s if index else None,
                )
            )
    return sorted(found, key=lambda one: one.arrival_s)


def test_sessions_in_a_small_pool_are_faster_with_both_options() -> None:
    """SES-2, SES-3: by virtual time, against lpm-aging and lru; more of each prompt is found cached."""
    engine = preset("llama-8b-h100")
    engine = type(engine)(
        cost=engine.cost, kv_tokens=16384, context_length=engine.context_length, page_size=16, max_slots=64
    )
    ends, cached = {}, {}
    for name, settings in (("lru", {"schedule_policy": "lpm-aging"}), ("session", BOTH)):
        run = simulate(sessions(16, 6, 0.2), engine, SchedulerConfig(**settings))
        last = {one.request.session: one.end_s for one in sorted(run.outcomes, key=lambda one: one.end_s)}
        ends[name] = sum(last.values()) / len(last)
        cached[name] = sum(one.cached_tokens for one in run.outcomes)
    assert ends["session"] < 0.98 * ends["lru"] and cached["session"] > 2 * cached["lru"]
