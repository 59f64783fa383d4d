"""Whole prefill passes: ADM-2, ADM-9, BLK-4, STEP-1 to STEP-3, 4.8, examples A17, A18."""

from typing import Any

import pytest
from factory import Bench, at_once, greedy, match_and_lock, oracle, own_tokens, steady

from quartet.wire.frames import Abort, Step, unpack_ids
from tests.support.core_rig import CoreRig


def chunks(rig: CoreRig) -> list[list[int]]:
    """Run to the end; return the chunk lengths of each step."""
    found = []
    while rig.steps:
        found.append([chunk.length for chunk in rig.steps[0].chunks])
        rig.step()
    return found


def test_a17_chunks_of_a_prompt() -> None:
    """A17, STEP-1: prompt 100, chunk 32, P 16."""
    rig = CoreRig(pages=64, page_size=16, chunked_prefill_size=32)
    rig.submit(own_tokens(1, 100), params=greedy(1))
    assert chunks(rig) == [[32], [32], [32], [4]]


def test_a18_where_the_tokens_are() -> None:
    """A18, INV-1: N 256, P 16, 64 in the tree of which r locks 32; r reaches to token 50."""
    bench = Bench(pages=16, page_size=16)
    prompt = own_tokens(1, 49)
    bench.cache([*prompt[:32], *own_tokens(2, 32)])
    r = bench.run("r", prompt, 2, 20)
    assert (r.lease.num_computed_tokens, r.lease.protected) == (50, 32)
    tree = bench.kv.tree
    private = len(r.lease.pages) * 16 - r.lease.protected
    assert (private, tree.evictable_tokens, tree.protected_tokens) == (32, 32, 32)
    assert bench.kv.pool.available_tokens == 160
    bench.scheduler.audit()


def test_adm2_no_skip_ahead_to_a_smaller_request() -> None:
    """ADM-2: the second does not fit, so the third is not looked at, though it would."""
    bench = Bench(pages=100)
    for name, prompt in (("first", 30), ("second", 60), ("third", 2)):
        bench.wait(name, prompt, 0, 5)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("first", "second third")
    assert dict(bench.queue.stop_reasons) == {"no_kv": 1}


def test_adm2_a_limit_on_requests() -> None:
    """ADM-2: prefill_max_requests."""
    bench = Bench(pages=100, prefill_max_requests=2)
    for name in "abc":
        bench.wait(name, 3, 0, 5)
    bench.form(1)
    assert (bench.running(), bench.waiting()) == ("a b", "c")
    assert dict(bench.queue.stop_reasons) == {"prefill_max_requests": 1}


def test_adm2_a_limit_on_running_requests() -> None:
    """ADM-2, ADM-11: max_running_requests; and the engine is marked full."""
    bench = Bench(pages=100, slots=2)
    for name in "abc":
        bench.wait(name, 3, 0, 5)
    bench.form(1)
    assert (bench.running(), bench.waiting(), bench.batch.is_full) == ("a b", "c", True)


def test_adm2_the_chunked_request_comes_first() -> None:
    """ADM-2, STEP-1: then the queue with what is left of the chunk."""
    rig = CoreRig(pages=64, page_size=4, chunked_prefill_size=16)
    long, short = own_tokens(1, 20), own_tokens(2, 9)
    with at_once(rig):
        rig.submit(long, params=greedy(1))
        rig.submit(short, params=greedy(1))
    assert chunks(rig) == [[16], [4, 9]]


def test_adm5_only_one_request_is_chunked_at_a_time() -> None:
    """ADM-5: the second long one starts with what the first one's last chunk leaves, in whole pages."""
    rig = CoreRig(pages=64, page_size=4, chunked_prefill_size=16)
    with at_once(rig):
        rig.submit(own_tokens(1, 22), params=greedy(1))
        rig.submit(own_tokens(2, 22), params=greedy(1))
    assert chunks(rig) == [[16], [6, 8], [14]]


def test_adm8_the_continuation_is_not_matched_again() -> None:
    """ADM-8: though meanwhile the tree has got all of it."""
    bench = Bench(pages=100, page_size=4, chunked_prefill_size=8)
    prompt = own_tokens(1, 24)
    bench.wait("long", prompt, 0, 4)
    bench.form(1)
    bench.cache(prompt)
    batch = bench.form(2)
    assert [chunk.length for chunk in batch.chunks] == [8]
    # Its own pages are duplicates of the tree's by now; the step that is issued still writes them (TREE-8).
    assert len(batch.replaced) == 2
    bench.kv.pool.free(batch.replaced)
    bench.scheduler.audit()


@pytest.mark.parametrize(("start", "end", "pages"), [(0, 1, 1), (0, 16, 1), (0, 17, 2), (15, 16, 0), (16, 17, 1)])
def test_adm9_pages_of_an_extend(start: int, end: int, pages: int) -> None:
    """ADM-9: ceil(end/P) - ceil(start/P)."""
    bench = Bench(pages=10, page_size=16)
    made = bench.request("r", 100, 0, 5)
    match_and_lock(bench.kv, made)
    bench.kv.extend(made.lease, start)
    assert len(bench.kv.extend(made.lease, end)) == pages


def test_adm9_only_the_shortfall_is_evicted() -> None:
    """ADM-9: against e + P."""
    bench = Bench(pages=50)
    for number in range(4):
        bench.cache(own_tokens(10 + number, 10))
    bench.wait("r", 20, 0, 2)
    bench.form(1)
    # 10 were available, 21 wanted: two leaves of 10 go. The prompt itself is in the tree by now.
    assert bench.kv.tree.evictable_tokens == 20 and bench.kv.tree.protected_tokens == 20


@pytest.mark.parametrize(("prompt", "code"), [(959, None), (960, "context_length_exceeded")])
def test_blk4_more_blocks_than_the_pool_has(prompt: int, code: str | None) -> None:
    """BLK-4: refused at arrival; one less is accepted and runs to its end."""
    rig = CoreRig(pages=16, page_size=64, reservation="blocks")
    rid = rig.submit(own_tokens(1, prompt), params=greedy(500))
    assert rig.streams[rid, 0].ending == code
    rig.run()
    assert rig.streams[rid, 0].ending == (code or "length")


def test_step1_the_chunk_is_the_budget_of_the_pass() -> None:
    """STEP-1: however it is shared, a step computes no more."""
    rig = CoreRig(pages=300, page_size=4, slots=8, chunked_prefill_size=16)
    for number, prompt in enumerate((30, 3, 17, 40, 8, 8, 5)):
        rig.submit(own_tokens(number, prompt), params=greedy(1))
    found = chunks(rig)
    assert sum(map(sum, found)) == 111 and len(found) <= 9
    assert all(sum(lengths) <= 16 for lengths in found)


def test_step2_decode_rows_join_a_prefill_step() -> None:
    """STEP-2: as one-token extends, out of the same budget."""
    rig = CoreRig(pages=300, page_size=4, slots=8, chunked_prefill_size=16, enable_mixed_chunk=True)
    rids = [rig.submit(own_tokens(number, 8), params=greedy(30)) for number in range(3)]
    for _ in range(4):
        rig.step()
    late = rig.submit(own_tokens(9, 40), params=greedy(3))
    mixed = []
    while rig.steps:
        step = rig.steps[0]
        if step.chunks and step.decode:
            mixed.append(step.chunks[0].length)
        rig.step()
    assert mixed == [12, 13, 13, 2]  # 16 less three rows, a first chunk in whole pages
    assert [rig.streams[rid, 0].ending for rid in (*rids, late)] == ["length"] * 4


def test_step3_a_chunked_request_is_silent_until_its_last_chunk() -> None:
    """STEP-3: it samples nothing, streams nothing, is not in the batch."""
    rig = CoreRig(pages=64, page_size=4, chunked_prefill_size=8)
    rid = rig.submit(own_tokens(1, 30), params=greedy(2))
    results = []
    while rig.scheduler._batch.chunked is not None:
        assert not rig.scheduler._batch.running and rig.outputs(rid) == []
        step = rig.steps.popleft()
        result = rig.worker.run(step)  # type: ignore[union-attr]
        results.append(len(unpack_ids(result.ids)))
        rig.send(result)
    assert results == [0, 0]
    rig.run()
    assert len(rig.outputs(rid)) == 2


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_step3_an_abort_between_chunks_frees_all(steps: int) -> None:
    """STEP-3: pages, lock, slot; the results in flight fall through."""
    rig = CoreRig(pages=64, page_size=4, chunked_prefill_size=8)
    rid = rig.submit(own_tokens(1, 50), params=greedy(2))
    for _ in range(steps):
        rig.step()
    assert rig.scheduler._batch.chunked is not None
    rig.send(Abort(rid))
    rig.streams[rid, 0].ending = "aborted"
    kv = rig.scheduler._kv
    assert kv.tree.protected_tokens == 0 and kv.reachable_tokens() == kv.capacity_tokens
    rig.run()
    assert rig.scheduler.is_idle() and rig.outputs(rid) == []


def test_4_8_short_requests_run_beside_the_chunk_that_makes_room_for_them() -> None:
    """4.8: P 4, chunk 16: two works of 4 are reserved, the continuation takes the other 8, all in one step."""
    rig = CoreRig(pages=200, page_size=4, chunked_prefill_size=16, schedule_policy="shortest-prefill-first")
    rig.submit(own_tokens(1, 80), params=greedy(1))
    rig.submit(own_tokens(2, 4), params=greedy(1))
    rig.submit(own_tokens(3, 4), params=greedy(1))
    # Two steps were in flight when the short ones came.
    assert chunks(rig) == [[16], [16], [8, 4, 4], [16], [16], [8]]


def test_ret8_a_retracted_request_is_a_longer_prompt() -> None:
    """RET-8: matched on prompt and output, chunked like any other, and its next token has the next index."""
    entered: list[tuple[bytes, int, int]] = []
    rig = CoreRig(
        pages=24, page_size=4, slots=8, prefill_max_requests=1, init_new_token_ratio=0.05, chunked_prefill_size=8
    )

    def watch(frame: Any) -> None:
        if isinstance(frame, Step):
            entered.extend((bytes(enter.ids), enter.prompt_length, enter.cached_length) for enter in frame.enter)

    rig.watch(watch)
    prompts = {rig.submit(own_tokens(number, 10), params=steady(50)): number for number in range(6)}
    rig.run()
    resumed = [(unpack_ids(ids), prompt, cached) for ids, prompt, cached in entered if len(ids) // 4 > prompt]
    assert resumed and rig.scheduler.snapshot()[1]["retractions"] > 0
    for rid, number in prompts.items():
        assert rig.outputs(rid) == oracle(own_tokens(number, 10), 50, eos=-1)
    for ids, prompt, cached in resumed:
        full = ids[:prompt] + oracle(ids[:prompt], 50, eos=-1)
        assert ids == full[: len(ids)] and cached < len(ids)


def test_pr13_decode_goes_on_whatever_prefill_could_not_do() -> None:
    """PR-13: a candidate that does not fit ends the pass, not the step."""
    rig = CoreRig(pages=20, page_size=4, slots=4, chunked_prefill_size=-1)
    first = rig.submit(own_tokens(1, 20), params=greedy(40))
    blocked = rig.submit(own_tokens(2, 40), params=greedy(20))
    for _ in range(10):
        rig.step()
        assert rig.steps[-1].decode and not rig.steps[-1].chunks
    assert len(rig.outputs(first)) == 10 and rig.outputs(blocked) == []
    rig.run()
    assert len(rig.outputs(blocked)) == 20


def test_pr14_every_request_has_every_attribute() -> None:
    """PR-14: one class for all, initialised whole."""
    made = Bench(pages=4).request("r", 3, 0, 2)
    assert [name for name in made.__slots__ if not hasattr(made, name)] == []
