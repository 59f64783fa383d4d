"""The seam of cache groups: how far a match can be used, and what a group is told of nodes (TREE-12)."""

from collections.abc import Iterable

import pytest

from quartet.wire.errors import InvariantViolation
from quartet.wire.frames import pack_ids
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.lease import Lease
from scheduler_proc.core.policies.matching import PrefixMatcher
from scheduler_proc.core.radix import Node, RadixTree
from tests.support.core_rig import CoreRig
from tests.unit.scheduler_proc.policies.policy_rig import Line


class Marked:
    """A group that can go on where a test says so; it remembers what it is told."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.splits: list[tuple[Node, Node]] = []

    def usable(self, node: Node) -> Node:
        while node.parent is not None and node not in self.nodes:
            node = node.parent
        return node

    def on_split(self, upper: Node, lower: Node) -> None:
        self.splits.append((upper, lower))

    def on_removed(self, node: Node) -> None:
        if node in self.nodes:
            self.nodes.remove(node)

    def audit(self, nodes: Iterable[Node], leases: Iterable[Lease]) -> None:
        list(leases)
        if set(self.nodes) - set(nodes):
            raise InvariantViolation("INV-10", "a node that is gone is marked")


def test_a_match_is_used_up_to_where_all_groups_can_go_on() -> None:
    """TREE-12."""
    first, second = Marked(), Marked()
    tree = RadixTree(2, groups=(first, second))
    ends = [tree.insert(pack_ids([*range(1, n + 1)]), [*range(1, n // 2 + 1)], 0)[2] for n in (2, 6, 8)]
    assert tree.usable(ends[2], 8) == (tree.root, 0)
    first.nodes += [ends[0], ends[2]]
    second.nodes += [ends[0], ends[1]]
    assert [tree.usable(end, depth) for end, depth in zip(ends, (2, 6, 8), strict=True)] == [(ends[0], 2)] * 3
    first.nodes.append(ends[1])
    assert tree.usable(ends[2], 8) == (ends[1], 6)
    _, upper = tree.match(pack_ids([1, 2, 3, 4]))
    assert first.splits == [(upper, ends[1])] and tree.usable(upper, 4) == (ends[0], 2)
    assert tree.usable(ends[2], 8) == (ends[1], 6)
    tree.evict(4)
    assert first.nodes == [ends[0]] and second.nodes == [ends[0]]
    tree.clear()
    assert not first.nodes and not second.nodes


def test_a_lease_gets_the_pages_that_can_be_used() -> None:
    """TREE-12."""
    kv, group, lease = KvCache(8, 2, True), Marked(), Lease()
    kv.tree.groups = (group,)
    pages = kv.pool.allocate(4)
    _, _, end = kv.tree.insert(pack_ids([1, 2, 3, 4]), pages[:2], 0)
    kv.tree.insert(pack_ids([1, 2, 3, 4, 5, 6, 7, 8]), pages, 0)
    group.nodes.append(end)
    assert kv.match_and_lock(lease, pack_ids([1, 2, 3, 4, 5, 6, 7, 8]), (), 0) == 4
    assert (lease.pages, lease.node, kv.tree.protected_tokens) == (pages[:2], end, 4)


def test_policies_count_as_cached_what_can_be_used() -> None:
    """TREE-12, POL-3."""
    line, group = Line("lpm"), Marked()
    line.tree.groups = (group,)
    line.cache([1, 2, 3, 4])
    request = line.add("a", [1, 2, 3, 4, 5])
    matcher = PrefixMatcher()
    matcher.match(line.waiting, line.tree)
    assert request.matched_tokens == 0 and request.matched_node is not None
    group.nodes.append(request.matched_node)
    matcher.match(line.waiting, line.tree)
    assert request.matched_tokens == 4


def test_the_audit_asks_the_groups() -> None:
    """INV-10."""
    rig, group = CoreRig(), Marked()
    rig.scheduler.kv.tree.groups = (group,)
    rig.scheduler.audit()
    group.nodes.append(RadixTree(1).root)
    with pytest.raises(InvariantViolation, match="INV-10"):
        rig.scheduler.audit()
