"""Cache groups: what a model keeps of past tokens beside the pages of its full attention (rule TREE-12).

The pages of the radix tree hold keys and values of the layers with full attention. Other kinds of layers keep something
else, in memory of its own: states, pages of a window. A sequence can start from a cached prefix only where each group
has what its layers need to go on. A group keeps what it keeps by node; the tree tells it what becomes of its nodes.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from scheduler_proc.core.lease import Lease
from scheduler_proc.core.radix_node import Node


class CacheGroup(Protocol):
    """One kind of cache beside the pages of full attention."""

    def usable(self, node: Node) -> Node:
        """Return the deepest node on the path to `node` at whose end a sequence can go on; at the root it always can.

        Asked for every waiting request: it changes nothing, and does not count as use."""
        ...

    def on_split(self, upper: Node, lower: Node) -> None:
        """Take note that `upper` is the beginning of what was `lower`, which keeps its identity and its end."""
        ...

    def on_removed(self, node: Node) -> None:
        """Take note that a node has left the tree, with its pages."""
        ...

    def audit(self, nodes: Iterable[Node], leases: Iterable[Lease]) -> None:
        """Raise InvariantViolation where its books disagree with the nodes of the tree and the leases (INV-10)."""
        ...


def usable_match(groups: Sequence[CacheGroup], node: Node, tokens: int, page_size: int) -> tuple[Node, int]:
    """Return the deepest node on the path to `node`, which is `tokens` deep, at which all groups can go on, and its
    depth in tokens."""
    asked: Node | None = None
    while asked is not node:
        asked = node
        for group in groups:
            usable = group.usable(node)
            while node is not usable:
                tokens -= len(node.pages) * page_size
                assert node.parent is not None
                node = node.parent
    return node, tokens
