"""What of the radix tree may be evicted, and in which order (rule TREE-7; 4.7 for priorities).

Owns the strategies, the heaps in their order and the count of evictable tokens. It changes no node: radix.py removes
the leaves that it returns, and reports every lock, use and new leaf.
"""

import heapq
from collections.abc import Callable, Iterable

from quartet.wire.errors import ConfigError, InvariantViolation
from scheduler_proc.core.radix_node import Node

EvictionKey = tuple[int, int]

STRATEGIES: dict[str, Callable[[Node], EvictionKey]] = {
    "lru": lambda node: (node.last_access, 0),
    "lfu": lambda node: (node.hit_count, node.last_access),
    "fifo": lambda node: (node.creation, 0),
    "mru": lambda node: (-node.last_access, 0),
    "filo": lambda node: (-node.creation, 0),
    "priority": lambda node: (-node.urgency, node.last_access),
    "session": lambda node: (node.last_access, 0),
    "slru": lambda node: (node.hit_count >= 2, node.last_access),
}
"""Key of a node by the name of --radix-eviction-policy; the smallest is evicted first.

What is held for sessions is locked, so that session orders the rest as lru does."""
FALLS_ON_USE = frozenset({"mru"})
"""Strategies under which a node's key falls when the node is used; under the others a key only rises."""
COMPACT_ABOVE = 64


class EvictionQueue:
    """The evictable leaves of one tree, in the order of one strategy; push and pop cost O(log n) amortised.

    An entry may lag behind: a node that has been locked, has got children or has been used since stays in the heap,
    and is checked when it is popped. That is sound as long as no entry is larger than its node's key, so a strategy
    whose keys fall must `offer` a node again after each use.
    """

    def __init__(self, strategy: str) -> None:
        self._key = STRATEGIES[strategy]
        self.falls_on_use = strategy in FALLS_ON_USE
        self._heap: list[tuple[EvictionKey, int, Node]] = []
        self._queued: dict[Node, EvictionKey] = {}
        """The entry that counts for a node; others of the same node in the heap are void."""

    def offer(self, node: Node) -> None:
        """Take note of a node that may be evictable; without effect if it is not, or is queued early enough."""
        if not node.is_evictable:
            return
        key = self._key(node)
        queued = self._queued.get(node)
        if queued is None or queued > key:
            self._push(node, key)

    def pop(self) -> Node | None:
        """Take out the evictable leaf with the smallest key, or None if there is none."""
        while self._heap:
            key, _, node = heapq.heappop(self._heap)
            if self._queued.get(node) != key:
                continue
            del self._queued[node]
            if not node.is_evictable:
                continue
            current = self._key(node)
            if current == key:
                return node
            self._push(node, current)
        return None

    def discard(self, node: Node) -> None:
        """Forget a node that has left the tree."""
        self._queued.pop(node, None)

    def nodes(self) -> list[Node]:
        """Return every node that is queued: all evictable leaves, and some that are not so any more."""
        return list(self._queued)

    def clear(self) -> None:
        """Forget every node."""
        self._heap.clear()
        self._queued.clear()

    def missing(self, leaves: Iterable[Node]) -> list[Node]:
        """Return which of these evictable leaves would not be popped in their order; for the audit."""
        entries = {(serial, key) for key, serial, _ in self._heap}
        queued = self._queued
        return [
            leaf
            for leaf in leaves
            if leaf not in queued or queued[leaf] > self._key(leaf) or (leaf.serial, queued[leaf]) not in entries
        ]

    def _push(self, node: Node, key: EvictionKey) -> None:
        self._queued[node] = key
        heapq.heappush(self._heap, (key, node.serial, node))
        # Void entries keep dead nodes alive; a rebuild when they are the majority costs O(1) per push.
        if len(self._heap) > COMPACT_ABOVE + 2 * len(self._queued):
            self._heap = [(key, node.serial, node) for node, key in self._queued.items()]
            heapq.heapify(self._heap)


class Evictables:
    """The evictable part of one tree: token counts by urgency, and the leaves in order.

    Args:
        strategy: which leaves go first, a name in STRATEGIES; raises ConfigError for another.
        page_size: tokens of a page.
    """

    def __init__(self, strategy: str, page_size: int) -> None:
        if strategy not in STRATEGIES:
            raise ConfigError(f"radix_eviction_policy: {strategy!r} is not one of {', '.join(STRATEGIES)}")
        self._page_size = page_size
        self._queue = EvictionQueue(strategy)
        self._by_urgency: EvictionQueue | None = self._queue if strategy == "priority" else None
        self._tokens_by_urgency: dict[int, int] = {}
        self.tokens = 0

    def book(self, node: Node, pages: int) -> None:
        """Count `pages` of a node as evictable, or no longer so if negative."""
        tokens = pages * self._page_size
        self.tokens += tokens
        left = self._tokens_by_urgency.get(node.urgency, 0) + tokens
        if left:
            self._tokens_by_urgency[node.urgency] = left
        else:
            del self._tokens_by_urgency[node.urgency]

    def offer(self, node: Node) -> None:
        """Note a node that may have become an evictable leaf."""
        self._queue.offer(node)
        if self._by_urgency is not None and self._by_urgency is not self._queue:
            self._by_urgency.offer(node)

    def on_use(self, node: Node) -> None:
        """Note a use of the path to `node`. Its end alone can be a leaf, so no other place may have to change."""
        if self._queue.falls_on_use:
            self._queue.offer(node)

    def forget(self, node: Node) -> None:
        """Stop counting a removed node."""
        self.book(node, -len(node.pages))
        self._queue.discard(node)
        if self._by_urgency is not None:
            self._by_urgency.discard(node)

    def pop(self) -> Node | None:
        """Return the leaf that the strategy gives up first, or None; the caller removes it."""
        return self._queue.pop()

    def pop_from(self, urgency: int) -> Node | None:
        """Return the leaf of worst urgency, then oldest access, if it is `urgency` or worse; the caller removes it."""
        if self._by_urgency is None:
            # This order is kept from its first use on: most engines never use it.
            self._by_urgency = EvictionQueue("priority")
            for node in self._queue.nodes():
                self._by_urgency.offer(node)
        leaf = self._by_urgency.pop()
        if leaf is not None and leaf.urgency < urgency:
            self._by_urgency.offer(leaf)
            return None
        return leaf

    def tokens_from(self, urgency: int) -> int:
        """Return the evictable tokens in nodes whose urgency is `urgency` or worse."""
        return sum(tokens for node_urgency, tokens in self._tokens_by_urgency.items() if node_urgency >= urgency)

    def clear(self) -> None:
        """Forget everything."""
        self._queue.clear()
        if self._by_urgency is not None:
            self._by_urgency.clear()
        self._tokens_by_urgency.clear()
        self.tokens = 0

    def audit(self, unlocked: list[Node]) -> None:
        """Compare with the unlocked nodes that a walk has found; raises InvariantViolation (INV-4)."""
        by_urgency: dict[int, int] = {}
        for node in unlocked:
            by_urgency[node.urgency] = by_urgency.get(node.urgency, 0) + len(node.pages) * self._page_size
        if by_urgency != self._tokens_by_urgency or sum(by_urgency.values()) != self.tokens:
            raise InvariantViolation("INV-4", f"evictable {self._tokens_by_urgency}, a walk finds {by_urgency}")
        leaves = [node for node in unlocked if node.is_evictable]
        for queue in (self._queue, self._by_urgency):
            if queue is not None and (lost := queue.missing(leaves)):
                raise InvariantViolation("INV-4", f"{len(lost)} evictable leaves are not queued for eviction")
