"""Corners of rules that broken variants of the code got past other tests (scripts/broken_variants.py)."""

from factory import Bench, Room, adder, greedy, own_tokens, request, steady

from quartet.wire.frames import Abort
from scheduler_proc.core.request import RequestState
from tests.support.core_rig import CoreRig

PRIORITY = {"enable_priority_scheduling": True, "priority_scheduling_preemption_threshold": 0}


def test_pre4_the_compatible_need_is_of_all_of_max_new_tokens() -> None:
    """PRE-4: 10 tokens of prompt, 30 of output, 50 wanted: 40 + 50, not 40 + 20."""
    newcomer = request(10, 30, 50)
    assert not adder(Room(80)).fits_without_compat(newcomer, [], 0)
    assert adder(Room(90)).fits_without_compat(newcomer, [], 0)


def test_pre4_a_prefix_that_others_hold_is_not_given_by_a_victim() -> None:
    """PRE-4, PRE-7: victim and anchor stand on one cached prefix, so the victim's 60 reserved tokens do not suffice."""
    bench = Bench(pages=200, init_new_token_ratio=1.0, **PRIORITY)  # type: ignore[arg-type]
    prompt = own_tokens(50, 50)
    bench.cache(prompt)
    for name, priority in (("anchor", 100), ("victim", 0)):
        bench.run(name, [*prompt, 1], 0, 60, num_computed_tokens=50, priority=priority)
    bench.wait("new", 30, 0, 60, priority=50)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("anchor victim", "new")


def test_pre6_the_budget_of_the_pass_keeps_the_newcomers_reservation() -> None:
    """PRE-6: 61 of 100 tokens are the first newcomer's, so 41 are too many for a second one."""
    bench = Bench(pages=100, init_new_token_ratio=1.0, **PRIORITY)  # type: ignore[arg-type]
    bench.run("victim", 40, 1, 20, priority=0)
    bench.wait("first", 50, 0, 10, priority=50)
    bench.wait("second", 30, 0, 10, priority=40)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("first", "second victim")


def test_ret7_passes_are_counted_from_the_last_time_it_was_queued() -> None:
    """RET-7, MET-3: a retracted request has waited for no pass."""
    bench = Bench(pages=100, prefill_max_requests=1)
    requests = [bench.wait(name, 3, 0, 5) for name in "abc"]
    bench.form(1)
    bench.form(2)
    assert bench.queue.passes_waited(requests[2]) == 2
    bench.delivery.open(requests[0], 0.0)
    bench.batch.leave(requests[0], RequestState.WAITING)
    bench.queue.add(requests[0], 0.0)
    assert bench.queue.passes_waited(requests[0]) == 0


def test_step6_a_prompt_in_progress_is_not_deferred_for_want_of_slots() -> None:
    """STEP-6: beside a running request, with fewer slots free than the delay asks for."""
    bench = Bench(pages=100, page_size=4, slots=4, chunked_prefill_size=8, min_free_slots_delay=4)
    bench.run("runs", 8, 1, 20)
    bench.wait("long", 24, 0, 4)
    assert not bench.prefill.may_begin(0.0)
    bench.form(1)
    assert bench.batch.chunked is not None and bench.prefill.may_begin(0.0)


def test_ret16_a_lone_request_is_not_retracted_for_a_test() -> None:
    """RET-16: there is none to go on without it."""
    rig = CoreRig(pages=64, test_retract=True)
    rid = rig.submit([1, 2], params=steady(30))
    rig.run()
    assert rig.streams[rid, 0].ending == "length" and len(rig.outputs(rid)) == 30
    assert rig.scheduler.snapshot()[1]["retractions"] == 0
    bench = Bench(pages=64, test_retract=True)
    row = bench.run("row", 8, 1, 20)
    assert [bench.retraction.make_fit([row], 0.0) for _ in range(6)] == [([row], False)] * 6


def test_ret4_a_lone_row_gives_way_to_a_prompt_in_progress() -> None:
    """RET-4: the prompt holds the pages and cannot go on either, so the row is retracted and does not fail."""
    bench = Bench(pages=40, page_size=4, chunked_prefill_size=8)
    row = bench.run("row", 16, 1, 50, num_computed_tokens=16)
    bench.wait("long", 24, 0, 4)
    bench.form(1)
    assert bench.batch.chunked is not None
    bench.leave_available(0)
    assert bench.retraction.make_fit([row], 0.0) == ([], False)
    assert row.state is RequestState.WAITING and bench.waiting() == "row"


def test_ret14_what_an_aborted_request_has_put_out_is_not_cached() -> None:
    """RET-14: its prompt is, since the step that computed it was issued."""
    rig = CoreRig(pages=64, page_size=4)
    rid = rig.submit([1, 2, 3, 4], params=greedy(40))
    while len(rig.outputs(rid)) < 20:
        rig.step()
    rig.send(Abort(rid))
    rig.run()
    tree = rig.scheduler._kv.tree
    assert tree.evictable_tokens + tree.protected_tokens == 4
