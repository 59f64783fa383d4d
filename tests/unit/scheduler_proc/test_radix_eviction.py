"""Who is evicted: the strategies of TREE-7 (example R4), cache preemption (4.7), and the audit of both (INV-4)."""

import pytest

from quartet.wire.errors import ConfigError, InvariantViolation
from quartet.wire.frames import pack_ids
from scheduler_proc.core.eviction import COMPACT_ABOVE, STRATEGIES, EvictionQueue
from scheduler_proc.core.radix import Node, RadixTree


def insert(tree: RadixTree, ids: list[int], **fields: int) -> Node:
    return tree.insert(pack_ids(ids), [ids[-1]] * len(ids), 0, **fields)[2]


def runs_left(tree: RadixTree) -> list[int]:
    """The first token of each node, in order."""
    return sorted(node.key[0] for node in tree.nodes())


@pytest.mark.parametrize(
    ("strategy", "left"),
    [
        ("lru", [1, 3]),
        ("lfu", [1, 3]),
        ("mru", [2, 3]),
        ("fifo", [2, 3]),
        ("filo", [1, 2]),
        ("priority", [1, 3]),
        ("slru", [1, 3]),
    ],
)
def test_r4_each_strategy_gives_up_its_own(strategy: str, left: list[int]) -> None:
    """R4, TREE-7: [1,1] p5, [2,2] p0, [3,3] p3, high first, then the first is used."""
    tree = RadixTree(1, strategy)
    for token, priority in ((1, 5), (2, 0), (3, 3)):
        insert(tree, [token, token], urgency=-priority)
    tree.match(pack_ids([1, 1]))
    assert len(tree.evict(2)) == 2
    assert runs_left(tree) == left
    tree.audit()


def test_tree7_lfu_counts_requests() -> None:
    """TREE-7: one more request outweighs any number of matches."""
    tree = RadixTree(1, "lfu")
    insert(tree, [1])
    insert(tree, [1])
    insert(tree, [2])
    for _ in range(3):
        tree.match(pack_ids([2]))
    tree.evict(1)
    assert runs_left(tree) == [1]


def test_tree7_slru_protects_what_two_requests_used() -> None:
    """TREE-7: among those with one hit the oldest goes first, then among the others."""
    tree = RadixTree(1, "slru")
    insert(tree, [1])
    insert(tree, [1])
    insert(tree, [2])
    insert(tree, [3])
    tree.match(pack_ids([2]))
    left = []
    while tree.evict(1):
        left.append(runs_left(tree))
    assert left == [[1, 2], [1], []]


def test_tree7_mru_follows_later_uses_of_queued_leaves() -> None:
    """TREE-7: the key of a leaf in the heap falls with each use."""
    tree = RadixTree(1, "mru")
    for token in (1, 2, 3):
        insert(tree, [token])
    node = tree.match(pack_ids([2]))[1]
    tree.match(pack_ids([1]))
    tree.touch(node)
    order = []
    while freed := tree.evict(1):
        order += freed
    assert order == [2, 1, 3]


def test_tree7_unknown_strategy() -> None:
    """CFG-1: the message names what there is."""
    with pytest.raises(ConfigError, match="lru, lfu"):
        RadixTree(1, "tlru")


def cache_of_example() -> RadixTree:
    """4.7's example: leaves A (p1, 4 tokens) below X (p1, 2), B (p1, 3), C (p4, 6), D (p5, 8), E (p0, 5, locked)."""
    tree = RadixTree(1)
    for first, size, priority in (("C", 6, 4), ("B", 3, 1), ("X", 2, 1), ("D", 8, 5), ("E", 5, 0)):
        insert(tree, [ord(first)] * size, urgency=-priority)
    insert(tree, [ord("X")] * 2 + [ord("A")] * 4, urgency=-1)
    tree.lock(tree.match(pack_ids([ord("E")] * 5))[1])
    return tree


@pytest.mark.parametrize(
    ("need", "evicted"), [(3, ""), (10, "BA"), (12, "BAX"), (14, "BAXC"), (18, "BAXC"), (19, None)]
)
def test_cache_preemption_takes_the_least_urgent_then_the_oldest(need: int, evicted: str | None) -> None:
    """4.7: newcomer p5, 3 tokens available; all or nothing."""
    tree = cache_of_example()
    version = tree.version
    freed = tree.evict_for_priority(-5, need, 3)
    if evicted is None:
        assert freed is None
        assert tree.version == version
    else:
        assert freed is not None
        assert "".join(dict.fromkeys(chr(page) for page in freed)) == evicted
        assert 3 + len(freed) >= need
    tree.audit()


def test_cache_preemption_counts_what_it_may_take() -> None:
    """4.7: strictly worse for preemption, not better for isolation."""
    tree = cache_of_example()
    assert [tree.evictable_from(-priority) for priority in (0, 1, 4, 5)] == [0, 9, 15, 23]
    assert tree.evict_from(-4, 100) != []
    assert runs_left(tree) == [ord("D"), ord("E")]
    assert (tree.evictable_tokens, tree.evictable_from(-5)) == (8, 8)
    tree.audit()


@pytest.mark.parametrize("strategy", ["lru", "priority", "mru"])
def test_cache_preemption_keeps_its_order_through_later_changes(strategy: str) -> None:
    """4.7: uses, better urgencies, locks and plain evictions after the first call are seen by the next."""
    tree = RadixTree(1, strategy)
    for token in range(1, 7):
        insert(tree, [token], urgency=token)
    assert tree.evict_for_priority(0, 1, 0) == [6]
    insert(tree, [5], urgency=1)
    locked = tree.match(pack_ids([4]))[1]
    tree.lock(locked)
    insert(tree, [9], urgency=3)
    assert tree.evict_for_priority(0, 1, 0) == [3]
    tree.audit()
    tree.unlock(locked)
    assert tree.evict_for_priority(0, 3, 0) == [4, 9, 2]
    assert tree.evict_for_priority(1, 1, 0) is None
    assert sorted(tree.evict(9)) == [1, 5]
    tree.audit()


def test_evictable_by_urgency_moves_when_a_better_request_comes_through() -> None:
    """4.7: also while the node is locked."""
    tree = RadixTree(1)
    node = insert(tree, [1, 2], urgency=5)
    tree.lock(node)
    insert(tree, [1, 2], urgency=2)
    tree.unlock(node)
    insert(tree, [1], urgency=1)
    assert [tree.evictable_from(urgency) for urgency in (1, 2, 3)] == [2, 1, 0]
    tree.audit()


def test_inv4_the_audit_sees_a_lost_leaf_and_wrong_counters() -> None:
    """INV-4: an audit that cannot fail is none."""
    tree = RadixTree(1)
    node = insert(tree, [1, 2])
    tree._evictables._queue.discard(node)
    with pytest.raises(InvariantViolation, match="INV-4"):
        tree.audit()
    tree = RadixTree(1)
    insert(tree, [1, 2])
    tree._evictables.tokens += 1
    with pytest.raises(InvariantViolation, match="INV-4"):
        tree.audit()
    tree = RadixTree(1)
    insert(tree, [1, 2]).lock_ref = 1
    with pytest.raises(InvariantViolation, match="INV-4"):
        tree.audit()


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_heap_stays_in_proportion_to_the_tree(strategy: str) -> None:
    """Uses, removals and re-insertions do not pile up entries."""
    tree = RadixTree(1, strategy)
    for round_number in range(300):
        for token in range(4):
            insert(tree, [token], urgency=token)
            tree.match(pack_ids([token]))
        if round_number % 2:
            tree.evict_for_priority(1, 2, 0)
    queues = [tree._evictables._queue, tree._evictables._by_urgency]
    for queue in queues:
        assert isinstance(queue, EvictionQueue)
        assert len(queue._heap) <= COMPACT_ABOVE + 2 * 4 + 1
    tree.audit()
