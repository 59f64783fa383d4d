"""INV-1 to INV-8: each state that is broken on purpose is found, and found by its name."""

from collections.abc import Callable

import pytest
from factory import greedy, own_tokens

from quartet.wire.errors import InvariantViolation
from quartet.wire.frames import Submit
from quartet.wire.ids import Rid
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.scheduler import Scheduler
from tests.support.core_rig import CoreRig


def busy(page_size: int = 4) -> CoreRig:
    """Two requests that share a prefix run, one is chunked, one waits; something is cached and unlocked."""
    rig = CoreRig(pages=320 // page_size, page_size=page_size, slots=3, chunked_prefill_size=16)
    rig.submit(own_tokens(9, 20), params=greedy(2))
    rig.run()
    for number in (1, 2):
        rig.submit([*own_tokens(8, 16), number], params=greedy(30))
        rig.step()
    rig.submit(own_tokens(3, 90), params=greedy(5))
    rig.submit(own_tokens(4, 20), params=greedy(5))
    while rig.scheduler._batch.chunked is None:
        rig.step()
    scheduler = rig.scheduler
    tree = scheduler._kv.tree
    assert len(scheduler._batch.running) == 2 and scheduler._queue.waiting
    assert tree.evictable_tokens and tree.protected_tokens
    return rig


def a_page_is_lost(scheduler: Scheduler) -> None:
    scheduler._kv.pool._free.pop()


def a_request_has_too_few_pages(scheduler: Scheduler) -> None:
    request = next(iter(scheduler._batch.running.values()))
    scheduler._kv.pool.free([request.lease.pages.pop()])


def a_page_has_two_owners(scheduler: Scheduler) -> None:
    pool = scheduler._kv.pool
    pool._free[0] = next(iter(scheduler._batch.running.values())).lease.pages[-1]


def a_tree_page_is_free_too(scheduler: Scheduler) -> None:
    kv = scheduler._kv
    kv.pool._free[0] = next(kv.tree.nodes()).pages[0]


def a_counter_is_off(scheduler: Scheduler) -> None:
    kv = scheduler._kv
    kv.tree.protected_tokens += 4
    kv.tree._evictables.tokens -= 4


def a_leaf_cannot_be_evicted(scheduler: Scheduler) -> None:
    scheduler._kv.tree._evictables._queue.clear()


def a_key_is_short(scheduler: Scheduler) -> None:
    node = next(iter(scheduler._kv.tree.nodes()))
    node.key = node.key[:-4]


def a_child_is_filed_wrongly(scheduler: Scheduler) -> None:
    root = scheduler._kv.tree.root
    key, node = root.children.popitem()
    root.children["", key[1][::-1]] = node  # type: ignore[index]


def a_lock_is_left_over(scheduler: Scheduler) -> None:
    next(node for node in scheduler._kv.tree.nodes() if node.lock_ref).lock_ref += 1


def a_lock_is_missing(scheduler: Scheduler) -> None:
    next(node for node in scheduler._kv.tree.nodes() if node.lock_ref > 1).lock_ref -= 1


def a_request_is_in_two_places(scheduler: Scheduler) -> None:
    scheduler._queue.waiting.append(next(iter(scheduler._batch.running.values())))


def a_request_is_in_no_place(scheduler: Scheduler) -> None:
    scheduler._queue.waiting.clear()


def a_waiting_request_has_a_slot(scheduler: Scheduler) -> None:
    scheduler._queue.waiting[0].slot = 0


def a_waiting_request_has_a_lock(scheduler: Scheduler) -> None:
    scheduler._queue.waiting[0].lease.node = next(scheduler._kv.tree.nodes())


def a_running_request_is_not(scheduler: Scheduler) -> None:
    next(iter(scheduler._batch.running.values())).state = RequestState.FINISHED


def a_running_request_is_out_of_step(scheduler: Scheduler) -> None:
    next(iter(scheduler._batch.running.values())).launched += 1


def a_chunked_request_runs(scheduler: Scheduler) -> None:
    assert scheduler._batch.chunked is not None
    scheduler._batch.chunked.state = RequestState.RUNNING


def a_slot_is_lost(scheduler: Scheduler) -> None:
    scheduler._batch.free_slots.clear()
    scheduler._batch.max_slots += 1


def the_dummy_page_is_free(scheduler: Scheduler) -> None:
    scheduler._kv.pool._free[0] = 0


BROKEN: list[tuple[str, Callable[[Scheduler], None]]] = [
    ("INV-1", a_page_is_lost),
    ("INV-1", a_request_has_too_few_pages),
    ("INV-3", a_page_has_two_owners),
    ("INV-3", a_tree_page_is_free_too),
    ("INV-4", a_counter_is_off),
    ("INV-4", a_leaf_cannot_be_evicted),
    ("INV-5", a_key_is_short),
    ("INV-5", a_child_is_filed_wrongly),
    ("INV-6", a_lock_is_left_over),
    ("INV-6", a_lock_is_missing),
    ("INV-7", a_request_is_in_two_places),
    ("INV-7", a_request_is_in_no_place),
    ("INV-7", a_waiting_request_has_a_slot),
    ("INV-7", a_waiting_request_has_a_lock),
    ("INV-7", a_running_request_is_not),
    ("INV-7", a_running_request_is_out_of_step),
    ("INV-7", a_chunked_request_runs),
    ("INV-7", a_slot_is_lost),
    ("INV-8", the_dummy_page_is_free),
]


@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        pytest.param(
            name,
            each,
            id=f"{name}-{each.__name__}",
        )
        for name, each in BROKEN
    ],
)
def test_inv_a_broken_state_is_found_by_name(name: str, break_it: Callable[[Scheduler], None]) -> None:
    """INV-1, INV-3, INV-4, INV-5, INV-6, INV-7, INV-8: the audit passes before and raises after."""
    rig = busy()
    rig.scheduler.audit()
    break_it(rig.scheduler)
    with pytest.raises(InvariantViolation) as caught:
        rig.scheduler.audit()
    assert caught.value.name == name


def rows_are_expected(scheduler: Scheduler) -> None:
    submit = Submit(Rid(bytes(16)), 0, 0, "api-0", "detok-0", b"", b"", greedy(1))
    scheduler._in_flight.by_generation[99] = Request(submit, 1, (), 1, 0, 0.0)


def a_node_is_locked(scheduler: Scheduler) -> None:
    kv = scheduler._kv
    kv.tree.lock(next(kv.tree.nodes()))


@pytest.mark.parametrize(("name", "break_it"), [("INV-2", rows_are_expected), ("INV-6", a_node_is_locked)])
def test_inv2_an_idle_engine_holds_nothing(name: str, break_it: Callable[[Scheduler], None]) -> None:
    """INV-2: everything is free or evictable; a lock without a holder is found even before that."""
    rig = CoreRig()
    rig.submit(own_tokens(1, 20), params=greedy(4))
    rig.run()
    kv = rig.scheduler._kv
    assert kv.reachable_tokens() == kv.capacity_tokens and kv.tree.protected_tokens == 0
    rig.scheduler.audit()
    break_it(rig.scheduler)
    with pytest.raises(InvariantViolation) as caught:
        rig.scheduler.audit()
    assert caught.value.name == name


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_inv8_the_dummy_page_is_never_handed_out(page_size: int) -> None:
    """INV-8: when all pages are taken they are 1 to N/P."""
    rig = busy(page_size)
    kv = rig.scheduler._kv
    handed_out = kv.pool.allocate(kv.pool.available_tokens // page_size)
    assert 0 not in handed_out and len(set(handed_out)) == len(handed_out)
    assert all(1 <= page <= kv.pool.page_count for page in handed_out)
