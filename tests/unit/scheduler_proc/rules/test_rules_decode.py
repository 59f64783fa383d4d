"""The memory check of decode steps and the choice of victims: RET-1 to 5, RET-9 to 13, RET-17, examples D0 to D6."""

import pytest
from factory import Bench, greedy, own_tokens

from quartet.wire.frames import Failed
from scheduler_proc.core.admission import needed_blocks
from scheduler_proc.core.lease import Lease
from scheduler_proc.core.request import RequestState
from scheduler_proc.core.retraction import pick_retracted
from tests.support.core_rig import CoreRig

LENGTHS = (("a", 100, 5, 50), ("b", 40, 30, 60), ("c", 300, 5, 50), ("d", 10, 80, 100))


def bench_of_d1(avail: int, **fields: object) -> Bench:
    bench = Bench(pages=1000, **fields)  # type: ignore[arg-type]
    priorities = (9, 1, 5, 1) if bench.config.enable_priority_scheduling else (None,) * 4
    for (name, prompt, output, max_new), priority in zip(LENGTHS, priorities, strict=True):
        bench.run(name, prompt, output, max_new, priority=priority)
    bench.leave_available(avail)
    return bench


def d2(avail: int, evict: int = 0) -> Bench:
    bench = Bench(pages=100, page_size=16)
    for name, prompt, output in (("a", 17, 16), ("b", 33, 16), ("c", 10, 40), ("d", 60, 5)):
        bench.run(name, prompt, output, 100)
    assert [made.lease.num_computed_tokens for made in bench.rows()] == [32, 48, 49, 64]
    if evict:
        bench.cache(own_tokens(99, evict))
    bench.leave_available(avail)
    return bench


def survivors(bench: Bench) -> tuple[str, bool]:
    rows, has_retracted = bench.retraction.make_fit(bench.rows(), 0.0)
    return " ".join(bench.names[id(made)] for made in rows), has_retracted


@pytest.mark.parametrize(("avail", "fits"), [(32, True), (16, False)])
def test_d0_only_full_pages_need_another(avail: int, fits: bool) -> None:
    """D0, RET-1: P 16 and C = 32, 47, 48, 17: two pages, 32 tokens."""
    bench = Bench(pages=40, page_size=16)
    for number, num_computed_tokens in enumerate((32, 47, 48, 17)):
        bench.run(str(number), num_computed_tokens, 1, 50)
    bench.leave_available(avail)
    assert bench.retraction.fits(bench.rows()) is fits


def test_d1_the_shortest_output_with_the_longest_prompt_gives_way() -> None:
    """D1, RET-2, RET-3, RAT-3."""
    bench = bench_of_d1(avail=2)
    assert survivors(bench) == ("a b d", True)
    assert bench.waiting() == "c"
    assert bench.ratio.current == pytest.approx((115 + 60) / 211)


def test_d2_a_page_more_than_there_is() -> None:
    """D2, RET-1: three rows need a page each, one page is there; d frees four."""
    bench = d2(avail=16)
    assert survivors(bench) == ("a b c", True)
    assert bench.kv.pool.available_tokens == 16 + 64
    assert bench.ratio.current == pytest.approx(132 / 301)


@pytest.mark.parametrize(("avail", "evict"), [(48, 0), (16, 32)])
def test_d2_enough_or_enough_to_evict(avail: int, evict: int) -> None:
    """D2, RET-1: no retraction."""
    bench = d2(avail, evict)
    assert survivors(bench) == ("a b c d", False)
    assert bench.kv.pool.available_tokens == 48


def test_ret1_only_the_shortfall_is_evicted() -> None:
    """RET-1: 48 needed, 16 there: two of the cached leaves go, not three."""
    bench = d2(avail=16)
    bench.kv.pool.free(list(range(90, 96)))
    for number in range(6):
        bench.cache(own_tokens(50 + number, 16))
    assert bench.retraction.fits(bench.rows())
    assert bench.kv.tree.evictable_tokens == 4 * 16


@pytest.mark.parametrize(
    "interval",
    [1, 7],
)
def test_d3_the_last_one_is_failed_and_the_engine_goes_on(interval: int) -> None:
    """D3, RET-4: the partial output is delivered, the pages are free, the next request runs."""
    rig = CoreRig(pages=40, page_size=16, chunked_prefill_size=-1, stream_interval=interval)
    rid = rig.submit(own_tokens(1, 510), params=greedy(100))
    kv = rig.scheduler._kv
    taken = kv.pool.allocate(kv.pool.available_tokens // 16)
    audit, rig.scheduler.audit = rig.scheduler.audit, lambda: None  # type: ignore[method-assign]
    rig.run()
    assert rig.streams[rid, 0].ending == "out_of_memory"
    kv.pool.free(taken)
    audit()
    assert kv.reachable_tokens() == kv.capacity_tokens
    later = rig.submit([1, 2, 3], 4)
    rig.run()
    assert rig.streams[later, 0].ending in ("length", "stop")
    # C 512: two decodes were launched after the prompt, so three tokens were made.
    assert len(rig.outputs(rid)) == 3


def test_d3_alone_at_once() -> None:
    """D3, RET-4, PR-17: C 512, P 16, nothing available, nothing to evict."""
    bench = Bench(pages=40, page_size=16)
    lone = bench.run("lone", 512, 1, 50)
    bench.leave_available(0)
    before = bench.ratio.current
    assert survivors(bench) == ("", False)
    (failed,) = [frame for _, frame in bench.delivery.take() if isinstance(frame, Failed)]
    assert (failed.rid, failed.status, failed.code) == (lone.rid, 500, "out_of_memory")
    assert "even after retracting every other request" in failed.message
    assert bench.ratio.current == before and bench.table.is_empty
    assert bench.kv.pool.available_tokens == 512


def test_d4_of_equals_the_later_one_gives_way() -> None:
    """D4, RET-2: identical but for the place in the batch."""
    bench = Bench(pages=1000)
    bench.run("x", 100, 12, 50)
    bench.run("y", 100, 12, 50)
    bench.leave_available(0)
    assert survivors(bench) == ("x", True)
    assert bench.waiting() == "y"
    assert bench.ratio.current == pytest.approx(32 / 51)


def test_d5_a_shared_prefix_becomes_evictable() -> None:
    """D5, RET-5: y frees nothing at once, but its own part of the tree can be evicted for K tokens a survivor."""
    bench = Bench(pages=40, page_size=16)
    shared = own_tokens(7, 80)
    for number, name in enumerate("xy"):
        prompt = [*shared, *own_tokens(number, 32)]
        bench.cache(prompt)
        made = bench.run(name, prompt, 1, 50)
        assert (made.prompt_tokens, made.lease.num_computed_tokens, made.lease.protected) == (112, 112, 112)
    bench.leave_available(0)
    assert bench.kv.tree.evictable_tokens == 0
    assert survivors(bench) == ("x", True)
    assert bench.waiting() == "y"
    assert (bench.kv.pool.available_tokens, bench.kv.tree.evictable_tokens) == (32, 0)


def test_d6_the_least_urgent_gives_way_first() -> None:
    """D6, RET-2: of the two worst, b has the shorter output."""
    bench = bench_of_d1(avail=2, enable_priority_scheduling=True, retraction_policy="priority")
    assert survivors(bench) == ("a c d", True)
    assert bench.waiting() == "b"
    assert bench.ratio.current == pytest.approx(150 / 201)


@pytest.mark.parametrize(("given", "kept"), [({}, "a c d"), ({"retraction_policy": "length"}, "a b d")])
def test_ret2_with_priorities_on_the_default_is_by_priority(given: dict[str, str], kept: str) -> None:
    """RET-2: c has the shortest output and is more urgent than b."""
    bench = bench_of_d1(avail=2, enable_priority_scheduling=True, **given)
    assert survivors(bench) == (kept, True)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_ret2_the_first_victim_in_both_directions(order: tuple[int, ...]) -> None:
    """RET-2: shortest output, ties the longest prompt, whatever the order of the batch (PR-2)."""

    def first(*lengths: tuple[int, int]) -> tuple[int, int]:
        bench = Bench(pages=2000)
        batch = [bench.run(str(i), *lengths[i], 100) for i in order]
        victim = pick_retracted(batch, "length")
        return victim.prompt_tokens, len(victim.output_ids)

    assert first((10, 50), (10, 5), (10, 20)) == (10, 5)
    assert first((10, 5), (300, 5), (100, 5)) == (300, 5)
    assert first((500, 6), (10, 5), (20, 7)) == (10, 5)


def test_ret3_until_it_fits_and_never_the_last() -> None:
    """RET-3, RET-13, PR-11, PR-15: one victim after the other; the survivor decodes in the same step."""
    bench = Bench(pages=100)
    for number, name in enumerate("abcd"):
        bench.run(name, 4, 10 + number, 50)
    bench.leave_available(0)
    bench.kv.release = no_gain(bench)  # type: ignore[method-assign]
    rows, has_retracted = bench.retraction.make_fit(bench.rows(), 0.0)
    assert has_retracted and bench.waiting() == "a b c"
    # d alone still did not fit: it was not retracted but failed, as nothing is in flight.
    assert rows == [] and not bench.batch.running


def no_gain(bench: Bench):  # type: ignore[no-untyped-def]
    """Release a request's KV, and have another request take it."""
    release = bench.kv.release

    def released(lease: Lease) -> int:
        tokens = release(lease)
        bench.kv.pool.allocate(tokens // bench.kv.page_size)
        return tokens

    return released


def test_ret13_victims_queue_in_the_order_taken() -> None:
    """RET-13: and behind the requests that wait already; the survivors decode in that step."""
    bench = Bench(pages=200, slots=6)
    for name, output in (("p", 9), ("q", 3), ("r", 5), ("s", 20)):
        bench.run(name, 10, output, 60)
    bench.wait("w", 20, 0, 100)
    bench.leave_available(0)
    bench.batch.is_full = True
    assert bench.kv.pool.available_tokens == 0
    released = bench.kv.release
    bench.kv.release = lambda lease: taken_but(bench, released, lease)  # type: ignore[method-assign]
    rows, _ = bench.retraction.make_fit(bench.rows(), 0.0)
    assert bench.waiting() == "w q r"
    assert [bench.names[id(made)] for made in rows] == ["p", "s"]
    assert bench.batch.launch_rows(rows)


def taken_but(bench: Bench, release, lease: Lease) -> int:  # type: ignore[no-untyped-def]
    """Let one token of every victim come free."""
    tokens: int = release(lease)
    bench.kv.pool.allocate(tokens - 1)
    return tokens


def test_ret5_what_a_victim_gives_and_keeps_cached() -> None:
    """RET-5, TREE-10: private pages are free at once, the locked prefix stays as evictable, nothing is inserted."""
    bench = Bench(pages=200, retract_decode_steps=0)
    prompt = own_tokens(3, 40)
    bench.cache(prompt[:30])
    bench.run("long", 10, 50, 60)
    bench.run("victim", prompt, 5, 60)
    bench.leave_available(0)
    assert bench.kv.tree.protected_tokens == 30
    survivors(bench)
    assert bench.waiting() == "victim"
    assert (bench.kv.pool.available_tokens, bench.kv.tree.evictable_tokens, bench.kv.tree.protected_tokens) == (
        44 - 30,
        30,
        0,
    )


@pytest.mark.parametrize(("steps", "left"), [(0, 30), (7, 30), (14, 30), (20, 20), (60, 0)])
def test_ret5_room_for_k_steps_of_the_remaining_requests(steps: int, left: int) -> None:
    """RET-5, CFG-3: K is retract_decode_steps; only the shortfall is evicted (leaves of 10 tokens, one survivor)."""
    bench = Bench(pages=400, retract_decode_steps=steps)
    for number in range(3):
        bench.cache(own_tokens(30 + number, 10))
    bench.run("long", 10, 50, 60)
    bench.run("victim", 10, 5, 60)
    bench.leave_available(0)
    bench.retraction._shrink(bench.rows(), 0.0)
    assert bench.kv.tree.evictable_tokens == left
    assert bench.ratio.current == pytest.approx(min(1, (50 + steps) / 61))


def test_b3_tokens_to_free_are_rounded_up_to_blocks() -> None:
    """B3, RET-17: K 20 and three that stay want 60 tokens, one block of 64; the original's floor says none."""
    assert needed_blocks(60, 64) == 1
    bench = Bench(pages=40, page_size=64)
    for number in range(2):
        bench.cache(own_tokens(30 + number, 64))
    for name, output in (("a", 50), ("b", 50), ("c", 50)):
        bench.run(name, 64 - 30, output, 60, num_computed_tokens=70)
    # The victim has nothing of its own to give, so all of it must come from the tree.
    bench.cache(own_tokens(5, 64))
    bench.run("victim", [*own_tokens(5, 64), 1], 0, 60, num_computed_tokens=64)
    bench.leave_available(0)
    bench.retraction._shrink(bench.rows(), 0.0)
    assert bench.waiting() == "victim"
    assert bench.kv.pool.available_tokens == 64


def test_ret9_no_retraction_while_a_length_finish_is_in_flight() -> None:
    """RET-9: its pages come back by themselves; decode is skipped, the ratio stays, and afterwards it fits."""
    bench = Bench(pages=200)
    bench.run("stays", 10, 5, 60)
    ending = bench.run("ends", 10, 5, 6)
    ending.launched = ending.max_new_tokens
    bench.batch.release_slot(ending)
    bench.leave_available(0)
    before = bench.ratio.current
    assert survivors(bench) == ("", False)
    assert bench.running() == "stays ends" and bench.ratio.current == before
    assert "ends" not in [bench.names[id(made)] for made in bench.rows()]
    bench.batch.leave(ending, RequestState.WAITING)
    assert survivors(bench) == ("stays", False)
