"""Every invariant of the scheduler, by name (rules INV-1 to INV-10). Slow and complete: for tests and post-mortems."""

import collections

from quartet.wire.errors import InvariantViolation
from scheduler_proc.core.batch import Batch
from scheduler_proc.core.in_flight import StepsInFlight
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.queue import WaitingQueue
from scheduler_proc.core.radix import ID_BYTES, Node
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.request_table import RequestTable


def audit(table: RequestTable, queue: WaitingQueue, batch: Batch, in_flight: StepsInFlight, kv: KvCache) -> None:
    """Raise InvariantViolation for the first invariant that does not hold."""
    holders = batch.on_board()
    _check_places(table, queue, holders)
    _check_batch(batch)
    _check_ownership(holders, kv)
    _check_tree(holders, kv)
    kv.tree.audit()
    for group in kv.tree.groups:
        group.audit(kv.tree.nodes(), (request.lease for request in holders))
    if table.is_empty and not in_flight.steps:
        _check_idle(in_flight, kv)
    _check_slots(batch, holders)
    if queue.tenants is not None:
        queue.tenants.audit(queue.waiting, holders)


def _fail(name: str, detail: str) -> None:
    raise InvariantViolation(name, detail)


def _check_places(table: RequestTable, queue: WaitingQueue, holders: list[Request]) -> None:
    """INV-7: each live request is in one place, and a waiting one holds nothing."""
    places = collections.Counter(id(request) for request in [*queue.waiting, *holders])
    live = table.live()
    if len(places) != len(live) or any(count != 1 for count in places.values()):
        _fail("INV-7", f"{len(live)} live requests in {sum(places.values())} places")
    for request in queue.waiting:
        if request.state is not RequestState.WAITING or request.lease.pages or request.lease.node or request.slot >= 0:
            _fail("INV-7", f"waiting request {request.rid.hex()} holds pages, a lock or a slot")


def _check_batch(batch: Batch) -> None:
    """INV-7: running requests have sampled a token for each computed one after the prompt, the chunked one none."""
    for request in batch.running.values():
        if request.state is not RequestState.RUNNING:
            _fail("INV-7", f"{request.state.name} request {request.rid.hex()} in the running batch")
        computed = request.lease.num_computed_tokens
        if computed != request.prompt_tokens + request.launched - 1:
            _fail("INV-7", f"running request {request.rid.hex()} has C {computed}, launched {request.launched}")
    if batch.chunked is not None and batch.chunked.state is not RequestState.PREFILLING:
        _fail("INV-7", f"chunked request in state {batch.chunked.state.name}")


def _check_ownership(holders: list[Request], kv: KvCache) -> None:
    """INV-1, INV-3, INV-8: the pages add up, and each has one owner."""
    owners: collections.Counter[int] = collections.Counter(kv.pool.free_pages())
    for node in kv.tree.nodes():
        owners.update(node.pages)
    private = 0
    for request in holders:
        lease = request.lease
        own = lease.pages[lease.protected // kv.page_size :]
        private += len(own) * kv.page_size
        owners.update(own)
        if len(lease.pages) * kv.page_size < lease.num_computed_tokens:
            detail = f"has {len(lease.pages)} pages for {lease.num_computed_tokens} tokens"
            _fail("INV-1", f"request {request.rid.hex()} {detail}")
    if 0 in owners:
        _fail("INV-8", "the dummy page has an owner")
    twice = [page for page, count in owners.items() if count > 1]
    if twice:
        _fail("INV-3", f"pages {twice[:5]} have more than one owner")
    total = kv.pool.available_tokens + kv.tree.evictable_tokens + kv.tree.protected_tokens + private
    if total != kv.capacity_tokens or len(owners) != kv.pool.page_count:
        _fail("INV-1", f"{total} tokens accounted for of {kv.capacity_tokens}")


def _check_tree(holders: list[Request], kv: KvCache) -> None:
    """INV-4, INV-5, INV-6: counters, keys and locks agree with a walk."""
    tree = kv.tree
    page_bytes = kv.page_size * ID_BYTES
    locking = [*(request.lease.node for request in holders), *kv.holds.nodes()]
    locks: collections.Counter[int] = collections.Counter(id(node) for node in locking)
    evictable = protected = 0
    for node in tree.nodes():
        size = len(node.pages) * kv.page_size
        if node.lock_ref:
            protected += size
        else:
            evictable += size
        if not node.key or len(node.key) != len(node.pages) * page_bytes:
            _fail("INV-5", f"a node's key of {len(node.key)} bytes for {len(node.pages)} pages")
        first = node.child_key if isinstance(node.child_key, bytes) else node.child_key[1]
        filed = None if node.parent is None else node.parent.children.get(node.child_key)
        if first != node.key[:page_bytes] or filed is not node:
            _fail("INV-5", "a child is filed under another key than its first page")
        if node.lock_ref != _expected_locks(node, locks):
            _fail("INV-6", f"lock_ref {node.lock_ref}, {_expected_locks(node, locks)} expected")
    if (evictable, protected) != (tree.evictable_tokens, tree.protected_tokens):
        _fail("INV-4", f"counters {tree.evictable_tokens}, {tree.protected_tokens}; walk {evictable}, {protected}")


def _expected_locks(node: Node, locks: "collections.Counter[int]") -> int:
    return locks[id(node)] + sum(child.lock_ref for child in node.children.values())


def _check_idle(in_flight: StepsInFlight, kv: KvCache) -> None:
    """INV-2: without a request, every page is free, evictable or held for a session, and no row is expected."""
    if kv.holds.next_end_s is None and (kv.reachable_tokens() != kv.capacity_tokens or kv.tree.protected_tokens):
        _fail("INV-2", f"idle, but {kv.reachable_tokens()} of {kv.capacity_tokens} tokens reachable")
    if in_flight.by_generation:
        _fail("INV-2", "idle, but rows are expected")


def _check_slots(batch: Batch, holders: list[Request]) -> None:
    """INV-7: each slot is free or belongs to one request."""
    taken = [request.slot for request in holders if request.slot >= 0]
    if sorted([*taken, *batch.free_slots]) != list(range(batch.max_slots)):
        _fail("INV-7", f"slots taken {sorted(taken)}, free {sorted(batch.free_slots)} of {batch.max_slots}")
