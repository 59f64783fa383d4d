"""Retraction that keeps KV: RET-19 to RET-21."""

from typing import Any

import pytest
from factory import Bench, oracle, own_tokens, steady

from quartet.settings.checks import check_together
from quartet.wire.config import Config, SchedulerConfig
from quartet.wire.errors import ConfigError
from scheduler_proc.core.request import Request
from scheduler_proc.core.thrash_guard import STEPS_AHEAD
from tests.support.core_rig import CoreRig


def bench(pages: int, page_size: int = 1, **config: Any) -> Bench:
    return Bench(pages=pages, page_size=page_size, retraction_keeps_kv=True, **config)


def test_ret19_what_a_victim_has_computed_stays_cached() -> None:
    """RET-19, INV-3: whole pages, evictable, and found again when it comes back."""
    rig = bench(20, page_size=4)
    victim = rig.run("a", 10, 5, 40)
    rig.retraction._retract(victim, 4, 0.0)
    assert (rig.kv.pool.available_tokens, rig.kv.tree.evictable_tokens) == (68, 12)
    rig.scheduler.audit()
    assert rig.kv.match_and_lock(victim.lease, victim.key()[:-4], victim.namespace, 0) == 12


@pytest.mark.parametrize(("page_size", "short", "left"), [(1, 3, 11), (4, 3, 8), (4, 4, 8), (4, 5, 4), (4, 40, 0)])
def test_ret19_a_shortage_takes_the_pages_that_it_is_short_of(page_size: int, short: int, left: int) -> None:
    """RET-19: from the end of the leaf, so that the beginning is still a prefix."""
    rig = bench(100, page_size=page_size)
    victim = rig.run("a", 10, 5, 40)
    rig.retraction._retract(victim, 4, 0.0)
    rig.leave_available(0)
    assert rig.kv.make_room(short) is (short <= 14)
    assert rig.kv.tree.evictable_tokens == left
    rig.kv.tree.audit()
    assert rig.kv.tree.match_length(victim.key(), 14, victim.namespace)[0] == left


def test_ret19_other_prefixes_go_first() -> None:
    """RET-19: one that was used after the retraction is evicted before what a waiting victim has."""
    rig = bench(60)
    victim, stays = rig.run("a", 10, 5, 40), rig.run("b", 4, 2, 40)
    rig.retraction._retract(victim, 4, 0.0)
    rig.cache(own_tokens(9, 20))
    rig.leave_available(0)
    for _ in range(20):
        assert rig.retraction.fits([stays])
        rig.kv.pool.allocate(1)
    assert rig.kv.tree.match_length(victim.key(), 14, victim.namespace)[0] == 14


def test_ret20_the_one_that_frees_the_most_gives_way() -> None:
    """RET-20: not the shortest output of RET-2."""
    rig = bench(200)
    rows = [rig.run("short", 4, 1, 40), rig.run("large", 50, 9, 40), rig.run("same", 50, 9, 40)]
    assert rig.retraction.guard.pick(rows, by_priority=False) is rows[2]
    rows[0].urgency = 1
    assert rig.retraction.guard.pick(rows, by_priority=True) is rows[0]


def came_back(row: Request, retractions: int, steps_ago: int) -> None:
    row.timeline.retractions, row.launched_at_entry = retractions, row.launched - steps_ago


def test_ret20_who_came_back_lately_or_was_retracted_three_times_stays() -> None:
    """RET-20: K is 20; among immune requests alone the one retracted least gives way."""
    rig = bench(400)
    rows = [rig.run("small", 4, 30, 60), rig.run("back", 50, 30, 60), rig.run("often", 60, 30, 60)]
    came_back(rows[1], 1, 19)
    came_back(rows[2], 3, 30)
    guard = rig.retraction.guard
    assert guard.pick(rows, False) is rows[0]
    assert guard.pick(rows[1:], False) is rows[1]
    came_back(rows[1], 1, 20)
    assert guard.pick(rows, False) is rows[1]


def test_ret21_retracted_requests_come_back_before_others_begin() -> None:
    """RET-21: whatever the policy; those retracted three times first."""
    rig = bench(400)
    rig.wait("new", 4, 0, 8)
    for name, retractions in (("once", 0), ("thrice", 2)):
        victim = rig.run(name, 4, 2, 8)
        victim.timeline.retractions = retractions
        rig.retraction._retract(victim, 1, 0.0)
    guard = rig.retraction.guard
    assert [rig.names[id(one)] for one in guard.returning_first(rig.queue.waiting)] == ["thrice", "once", "new"]
    assert guard.holds_back(rig.queue.waiting[0], ()) and not guard.holds_back(rig.queue.waiting[1], ())


@pytest.mark.parametrize("room", [-1, 0])
def test_ret21_a_request_begins_when_those_that_run_have_room(room: int) -> None:
    """RET-21: 4 K tokens for each of two, itself among them; the pass says what it waits for."""
    rig = bench(2000)
    rig.run("a", 10, 5, 40)
    rig.wait("new", 30, 0, 8)
    rig.leave_available(30 + 2 * STEPS_AHEAD * rig.config.retract_decode_steps + room)
    rig.form(1)
    assert rig.running() == ("a" if room else "a new")
    assert rig.queue.stop_reasons["thrash_guard"] == (room < 0)
    assert rig.batch.is_full is (room < 0)


def test_ret21_alone_or_more_urgent_none_is_held_back() -> None:
    """RET-21, PRE-1."""
    rig = bench(100, enable_priority_scheduling=True)
    urgent, plain = rig.wait("urgent", 30, 0, 8, priority=5), rig.wait("plain", 30, 0, 8, priority=0)
    guard = rig.retraction.guard
    assert not guard.holds_back(plain, ())
    runs = rig.run("a", 10, 5, 40, priority=0)
    assert guard.holds_back(plain, [runs]) and not guard.holds_back(urgent, [runs])


def test_ret21_without_the_option_none_is_held_back() -> None:
    """RET-21."""
    rig = Bench(pages=60)
    victim = rig.run("a", 10, 5, 40)
    rig.retraction._retract(victim, 4, 0.0)
    new = rig.wait("new", 30, 0, 8)
    guard = rig.retraction.guard
    assert not guard.holds_back(new, [victim]) and guard.returning_first(rig.queue.waiting) is rig.queue.waiting


@pytest.mark.parametrize("requeue", ["tail", "age"])
@pytest.mark.parametrize("is_forced", [False, True])
def test_ret19_outputs_are_those_of_the_undisturbed_request(requeue: str, is_forced: bool) -> None:
    """RET-19, RET-21: by the strict worker, which knows what each page holds."""
    rig = CoreRig(
        pages=24, page_size=4, init_new_token_ratio=0.05, retract_decode_steps=1, requeue=requeue,
        retraction_keeps_kv=True, test_retract=is_forced,
    )  # fmt: skip
    prompts = [own_tokens(number, 6) for number in range(1, 9)]
    rids = [rig.submit(prompt, params=steady(30)) for prompt in prompts]
    rig.run()
    assert rig.scheduler._counters.retractions
    assert [rig.outputs(rid) for rid in rids] == [oracle(prompt, 30, -1) for prompt in prompts]


def test_ret19_it_needs_the_tree() -> None:
    """RET-19."""
    config = Config(scheduler=SchedulerConfig(retraction_keeps_kv=True, disable_radix_cache=True))
    with pytest.raises(ConfigError, match="--retraction-keeps-kv needs the radix cache"):
        check_together(config)
