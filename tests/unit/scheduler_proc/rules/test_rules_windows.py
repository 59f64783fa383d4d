"""Page groups of layers that see a window (WIN-1 to WIN-6, INV-11); the strict worker checks what each group's rows
read."""

import pytest

from quartet.sizing.window_pools import WindowPool, fitting_pages
from quartet.wire.errors import InvariantViolation
from quartet.wire.ids import Rid
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lease import Lease
from scheduler_proc.core.window_group import WindowGroup
from tests.support.core_rig import EOS, VOCAB, CoreRig
from tests.support.strict_worker import continuation

PAGE, WINDOW, CHUNK = 4, 16, 16


def rig(pages: int = 128, window_pages: int = 24, **config: object) -> CoreRig:
    return CoreRig(pages, PAGE, windows=((WINDOW, window_pages),), **{"chunked_prefill_size": CHUNK, **config})


def group_of(rig: CoreRig) -> WindowGroup:
    return rig.scheduler.kv.windows[0]


def held_pages(rig: CoreRig) -> int:
    return group_of(rig).pool.page_count - group_of(rig).reachable_tokens // PAGE


def prompt(length: int, seed: int = 0) -> list[int]:
    return [1 + (at * 7 + seed * 13) % 90 for at in range(length)]


def check(rig: CoreRig, rid: Rid, ids: list[int], max_new: int) -> None:
    assert rig.outputs(rid) == continuation(ids, max_new, VOCAB, EOS)


def cached(rig: CoreRig, rid: Rid) -> int:
    return rig.scheduler._table.ended.find(rid)[-1].cached_tokens


def test_a_long_request_holds_its_window_and_a_chunk() -> None:
    """WIN-1, WIN-2: in the window's group, however long the context; in group 0, all of it."""
    engine, ids = rig(), prompt(300)
    rid = engine.submit(ids, 100)
    most = []
    while engine.step():
        most.append(held_pages(engine))
    assert max(most) <= (WINDOW + CHUNK) // PAGE + 1
    assert most[-30] <= WINDOW // PAGE + 1
    check(engine, rid, ids, 100)
    assert held_pages(engine) == 0


@pytest.mark.parametrize("is_sharing", [True, False])
def test_many_requests_longer_than_the_window_share_a_small_pool(is_sharing: bool) -> None:
    """WIN-2, WIN-5: the window's pool is a third of what one request has in group 0; each answer is right."""
    engine = rig(pages=400, window_pages=24, slots=6, disable_radix_cache=not is_sharing)
    prompts = [prompt(200 + 3 * at, at) for at in range(6)]
    rids = [engine.submit(ids, 40) for ids in prompts]
    engine.run()
    for rid, ids in zip(rids, prompts, strict=True):
        check(engine, rid, ids, 40)
    assert held_pages(engine) == 0


def test_a_prefix_is_a_hit_where_its_window_is_there() -> None:
    """WIN-3, WIN-6: the end of a sequence stays longest, the pages before it go for others' sake."""
    engine, ids = rig(window_pages=16), prompt(120)
    first = engine.submit(ids, 9)
    engine.run()
    turn = [*ids, *engine.outputs(first), 5, 6]
    second = engine.submit(turn, 9)
    engine.run()
    check(engine, second, turn, 9)
    assert cached_tokens(engine) >= 120
    other = [*ids[:60], 91, 92, 93]
    third = engine.submit(other, 9)
    before = cached_tokens(engine)
    engine.run()
    check(engine, third, other, 9)
    # Group 0 has 60 tokens of it, but what their last rows would see is gone.
    assert cached_tokens(engine) == before
    assert engine.scheduler.kv.tree.evictable_tokens >= 120


def cached_tokens(engine: CoreRig) -> int:
    return int(engine.scheduler.snapshot()[1]["cached_tokens"])


def test_what_is_computed_again_fills_the_gap() -> None:
    """WIN-3: a prefix whose window pages are gone is a hit again after a request that had to compute it."""
    engine, ids = rig(window_pages=24), prompt(60)
    engine.submit([*ids, 91, 92], 2)
    engine.run()
    group = group_of(engine)
    taken = [group.pool.allocate(1) for _ in range(group.pool.available_tokens // PAGE)]
    group._uncache(next(iter(group._unused)))
    while group._unused:
        group._uncache(next(iter(group._unused)))
    for pages in taken:
        group.pool.free(pages)
    engine.submit([*ids, 93, 94], 2)
    engine.run()
    assert cached_tokens(engine) == 0
    engine.submit([*ids, 95, 96], 2)
    engine.run()
    assert cached_tokens(engine) == 60


def test_admission_asks_each_pool() -> None:
    """WIN-4: group 0 has room for all; the window's pool of 64 tokens for three windows of 16 and the page more."""
    engine = rig(pages=400, window_pages=16, chunked_prefill_size=64)
    for at in range(5):
        engine.submit(prompt(12, at), 30)
    for _ in range(4):
        engine.step()
    gauges, _ = engine.scheduler.snapshot()
    assert (gauges["num_running_reqs"], gauges["num_queue_reqs"]) == (3, 2)
    assert engine.scheduler.kv.pool.available_tokens > 1500
    engine.run()
    assert engine.scheduler.is_idle()


def test_a_shortage_of_window_pages_retracts() -> None:
    """WIN-5: rows that have been admitted by a low ratio run out of the window's pool, not of group 0."""
    engine = rig(pages=400, window_pages=14, slots=8, init_new_token_ratio=0.01)
    prompts = [prompt(6, at) for at in range(8)]
    rids = [engine.submit(ids, 24) for ids in prompts]
    engine.run()
    assert engine.scheduler.snapshot()[1]["retractions"] > 0
    for rid, ids in zip(rids, prompts, strict=True):
        check(engine, rid, ids, 24)


def test_a_failed_step_leaves_no_page_that_it_wrote() -> None:
    """WIN-3: neither in its own nodes nor in gaps of older ones."""
    engine, ids = rig(), prompt(100)
    engine.submit(ids, 4)
    for _ in range(3):
        engine.step()
    engine.fail_step()
    rid = engine.submit([*ids[:90], 3], 4)
    engine.run()
    check(engine, rid, [*ids[:90], 3], 4)


def test_the_audit_finds_a_page_without_an_owner_and_a_lease_that_is_short() -> None:
    """INV-11."""
    engine = rig()
    engine.submit(prompt(50), 20)
    for _ in range(6):
        engine.step()
    group = group_of(engine)
    lost = group.pool.allocate(1)
    with pytest.raises(InvariantViolation, match=r"INV-11.*have an owner"):
        engine.scheduler.audit()
    group.pool.free(lost)
    engine.scheduler.audit()
    (request,) = engine.scheduler._batch.on_board()
    request.lease.windows[0].first += 1
    with pytest.raises(InvariantViolation, match=r"INV-11.*holds from page"):
        engine.scheduler.audit()


def held_at_once(kv: KvCache, tokens: int, chunk: int) -> int:
    """Return how many sequences of so many tokens the cache holds, each computed in chunks."""
    count = 0
    while True:
        lease = Lease()
        kv.match_and_lock(lease, b"", ("", ""), 0)
        while lease.num_computed_tokens < tokens:
            kv.trim(lease)
            if not kv.make_room(chunk):
                return count
            kv.extend(lease, lease.num_computed_tokens + chunk)
            lease.num_computed_tokens += chunk
        kv.trim(lease)
        count += 1


def test_the_same_memory_holds_more_requests_of_a_model_with_windows() -> None:
    """Gemma 3 27B: 10 layers see everything, 52 a window of 1,024; 8 kB a token and layer, 64 GiB for KV, chunks of
    2,048. Of 8k tokens 16 requests are held with pages for all tokens in all layers, 44 with page groups."""
    page, budget = 16, 64 << 30
    one, window = 10 * page * 8192, WindowPool(1024, 52 * page * 8192, 64 + 128 + 4, 1 << 20)
    before = KvCache(fitting_pages(budget, one + window.page_bytes, ()), page, False)
    pages = fitting_pages(budget, one, (window,))
    after = KvCache(0, page, False)
    after.restart(pages, windows=[(1024, window.pages(pages))])
    assert (pages + 1) * one + (window.pages(pages) + 1) * window.page_bytes <= budget
    assert (held_at_once(before, 8192, 2048), held_at_once(after, 8192, 2048)) == (16, 44)
