"""The flag "full": what sets it, and what clears it (ADM-11)."""

from factory import Bench, greedy, own_tokens

from quartet.wire.frames import Abort, pack_ids
from scheduler_proc.core.request import RequestState
from tests.support.core_rig import CoreRig


def test_adm11_a_full_batch_admits_nothing_until_a_request_leaves() -> None:
    """ADM-11: want of KV beside a running request; passes are skipped while it lasts."""
    bench = Bench(pages=100)
    runs = bench.run("runs", 50, 1, 40)
    bench.wait("new", 60, 0, 5)
    bench.form(1)
    assert bench.batch.is_full and not bench.prefill.is_due()
    bench.batch.leave(runs, RequestState.WAITING)
    assert not bench.batch.is_full and bench.prefill.is_due()
    bench.form(2)
    assert bench.running() == "new"


def test_adm11_a_request_that_leaves_the_queue_blocks_no_other() -> None:
    """ADM-11: 500 of 1,008 tokens run, 700 queue and their client leaves: a request of 5 is admitted at once."""
    rig = CoreRig(pages=63, page_size=16, chunked_prefill_size=4096)
    runs = rig.submit(own_tokens(1, 400), params=greedy(100))
    rig.step()
    large = rig.submit(own_tokens(2, 600), params=greedy(100))
    rig.step()
    rig.send(Abort(large))
    small = rig.submit(own_tokens(3, 5), params=greedy(2))
    for _ in range(4):
        rig.step()
    assert len(rig.outputs(small)) == 2 and rig.streams[runs, 0].ending is None


def test_adm11_a_smaller_request_goes_before_the_one_that_did_not_fit() -> None:
    """ADM-11: under a policy that puts it first, a request that arrives is looked at."""
    rig = CoreRig(pages=63, page_size=16, chunked_prefill_size=4096, schedule_policy="shortest-prefill-first")
    rig.submit(own_tokens(1, 400), params=greedy(100))
    rig.step()
    rig.submit(own_tokens(2, 600), params=greedy(100))
    rig.step()
    small = rig.submit(own_tokens(3, 5), params=greedy(2))
    for _ in range(4):
        rig.step()
    assert len(rig.outputs(small)) == 2


def test_adm11_a_ratio_that_has_fallen_far_enough_lets_a_pass_look_again() -> None:
    """ADM-11: 100 tokens, 39 of them for a running request that may want 40 more; 25 + 1 + 5 fit below 0.75."""
    bench = Bench(pages=100, new_token_ratio_decay_steps=10)
    bench.run("runs", 40, 0, 40)
    bench.ratio.current = 1.0
    bench.wait("new", 25, 0, 5)
    bench.form(1)
    assert bench.batch.is_full
    for ratio, is_due in ((0.9, False), (0.75, False), (0.74, True)):
        bench.ratio.current = ratio
        assert bench.prefill.is_due() is is_due
    bench.form(2)
    assert bench.running() == "runs new"


def test_adm11_a_slot_is_free_once_its_last_row_is_launched() -> None:
    """ADM-11, STEP-10: the next request enters without waiting for the result of that row."""
    rig = CoreRig(pages=64, slots=1)
    first, second = rig.submit([1, 2], params=greedy(4)), rig.submit([1, 3], params=greedy(2))
    while len(rig.outputs(first)) < 3:
        rig.step()
    entered = [enter.ids for step in rig.steps for enter in step.enter]
    assert pack_ids([1, 3]) in entered and rig.streams[first, 0].ending is None
    rig.run()
    assert len(rig.outputs(second)) == 2


def test_adm11_an_empty_engine_is_never_full() -> None:
    """ADM-11: NO_TOKEN with nothing running must not close the door for ever."""
    bench = Bench(pages=100)
    bench.kv.pool.allocate(90)
    bench.wait("new", 60, 0, 5)
    bench.form(1)
    assert bench.waiting() == "new" and not bench.batch.is_full and bench.prefill.is_due()


def test_adm11_preemption_always_looks() -> None:
    """ADM-11: with preemption on the flag stops no pass."""
    bench = Bench(pages=100, enable_priority_scheduling=True)
    bench.run("runs", 50, 1, 40)
    bench.wait("new", 60, 0, 5)
    bench.form(1)
    assert bench.batch.is_full and bench.prefill.is_due()


def test_adm11_a_chunk_in_progress_goes_on() -> None:
    """ADM-11: also while the engine is full."""
    bench = Bench(pages=100, page_size=4, chunked_prefill_size=8)
    bench.wait("long", 24, 0, 4)
    bench.form(1)
    bench.batch.is_full = True
    assert bench.prefill.is_due() and bench.form(2).tokens == 8
