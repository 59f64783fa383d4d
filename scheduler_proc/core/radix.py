"""The radix tree: KV pages by the tokens that they hold (rules TREE-1 to TREE-7, least recently used evicted first).

Keys are little-endian int32 bytes, so that comparing a page is comparing bytes. A node's key is a whole number of
pages; children are found by their first page, at the root by (namespace, first page). Source: SGLang's radix cache.
"""

import heapq
from collections.abc import Iterator

from quartet.errors import InvariantViolation

ID_BYTES = 4
Namespace = tuple[str, ...]
ChildKey = bytes | tuple[Namespace, bytes]


class Node:
    """A run of pages. `step` is the step that wrote the last of them; `lock_ref` counts locks here and below;
    `serial` is the order of creation; `is_candidate` says that the eviction heap has an entry for the node."""

    __slots__ = (
        "child_key",
        "children",
        "is_candidate",
        "key",
        "last_access",
        "lock_ref",
        "pages",
        "parent",
        "serial",
        "step",
    )

    def __init__(
        self, parent: "Node | None", child_key: ChildKey, key: bytes, pages: list[int], step: int, serial: int
    ) -> None:
        self.parent = parent
        self.child_key = child_key
        self.key = key
        self.pages = pages
        self.step = step
        self.children: dict[ChildKey, Node] = {}
        self.serial = serial
        self.lock_ref = 0
        self.last_access = 0
        self.is_candidate = False


class RadixTree:
    """Pages of finished and running sequences, shared by prefix.

    Args:
        page_size: tokens of a page (P).
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._page_bytes = page_size * ID_BYTES
        self._clock = 0
        self._serial = 0
        self._candidates: list[tuple[int, int, Node]] = []
        self.root = Node(None, b"", b"", [], 0, 0)
        self.root.lock_ref = 1
        self.evictable_tokens = 0
        self.protected_tokens = 0

    def match(self, key: bytes, namespace: Namespace = ()) -> tuple[list[int], Node]:
        """Return the pages of the longest cached prefix of `key` and the node it ends in (TREE-2).

        A partial match splits the node at the page boundary. The path counts as just used.
        """
        self._clock += 1
        node, at, pages = self.root, 0, list[int]()
        end = len(key) // self._page_bytes * self._page_bytes
        while at < end:
            first = key[at : at + self._page_bytes]
            child = node.children.get((namespace, first) if node is self.root else first)
            if child is None:
                break
            child.last_access = self._clock
            common = self._common_bytes(child.key, key, at)
            if common < len(child.key):
                child = self._split(child, common)
            pages += child.pages
            at += common
            node = child
        return pages, node

    def _common_bytes(self, node_key: bytes, key: bytes, at: int) -> int:
        """Return how many bytes of `node_key` stand at `key[at:]`, in whole pages."""
        if key.startswith(node_key, at):
            return len(node_key)
        step, common = self._page_bytes, self._page_bytes
        while node_key[common : common + step] == key[at + common : at + common + step]:
            common += step
        return common

    def insert(self, key: bytes, pages: list[int], step: int, namespace: Namespace = ()) -> tuple[int, list[int], Node]:
        """Add `pages` under `key`, whose lengths agree and are whole pages (TREE-4).

        Returns the tokens already present, the tree's pages for all of `key`, and the last node. Where the tree had
        pages already it keeps its own; the caller frees its duplicates.
        """
        present, node = self.match(key, namespace)
        if len(present) == len(pages):
            return len(present) * self.page_size, present, node
        at = len(present) * self._page_bytes
        first = key[at : at + self._page_bytes]
        child_key: ChildKey = (namespace, first) if node is self.root else first
        fresh = pages[len(present) :]
        leaf = Node(node, child_key, key[at:], fresh, step, self._next_serial())
        leaf.last_access = self._clock
        node.children[child_key] = leaf
        self.evictable_tokens += len(fresh) * self.page_size
        self._offer(leaf)
        return len(present) * self.page_size, present + fresh, leaf

    def _split(self, lower: Node, at: int) -> Node:
        """Split `lower` after `at` bytes; the upper part inherits, the lower keeps its identity (TREE-3)."""
        count = at // self._page_bytes
        parent = lower.parent
        assert parent is not None
        upper = Node(parent, lower.child_key, lower.key[:at], lower.pages[:count], lower.step, self._next_serial())
        upper.lock_ref, upper.last_access = lower.lock_ref, lower.last_access
        parent.children[upper.child_key] = upper
        lower.key, lower.pages, lower.parent = lower.key[at:], lower.pages[count:], upper
        lower.child_key = lower.key[: self._page_bytes]
        upper.children[lower.child_key] = lower
        return upper

    def lock(self, node: Node) -> None:
        """Protect the path from `node` to the root from eviction (TREE-5). Locks nest."""
        while node.parent is not None:
            if node.lock_ref == 0:
                size = len(node.pages) * self.page_size
                self.evictable_tokens -= size
                self.protected_tokens += size
            node.lock_ref += 1
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one lock."""
        while node.parent is not None:
            if node.lock_ref == 0:
                raise InvariantViolation("INV-6", "a node is unlocked that was not locked")
            node.lock_ref -= 1
            if node.lock_ref == 0:
                size = len(node.pages) * self.page_size
                self.evictable_tokens += size
                self.protected_tokens -= size
                self._offer(node)
            node = node.parent

    def evict(self, tokens: int) -> list[int]:
        """Remove whole leaves, least recently used first, until `tokens` are freed or none is left (TREE-6).

        Returns the freed pages; may overshoot, may be fewer.
        """
        if tokens <= 0:
            return []
        freed: list[int] = []
        while self._candidates and len(freed) * self.page_size < tokens:
            last_access, _, leaf = heapq.heappop(self._candidates)
            leaf.is_candidate = False
            if leaf.parent is None or leaf.children or leaf.lock_ref:
                continue
            if leaf.last_access != last_access:
                self._offer(leaf)
                continue
            parent = leaf.parent
            freed += self._remove(leaf)
            self._offer(parent)
        return freed

    def _offer(self, node: Node) -> None:
        """Note a node that may be evicted. Entries are checked when they come up, so they may be out of date."""
        if node.parent is not None and not node.is_candidate and not node.children and not node.lock_ref:
            node.is_candidate = True
            heapq.heappush(self._candidates, (node.last_access, node.serial, node))

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _remove(self, leaf: Node) -> list[int]:
        assert leaf.parent is not None
        del leaf.parent.children[leaf.child_key]
        leaf.parent = None
        self.evictable_tokens -= len(leaf.pages) * self.page_size
        return leaf.pages

    def remove_written_since(self, step: int) -> list[int]:
        """Remove every node whose pages a step from `step` on has written; returns the pages.

        For a step that failed. All locks on such nodes have been released before.
        """
        doomed = [node for node in self.nodes() if node.step >= step]
        freed: list[int] = []
        # A child is never older than its parent, so each doomed subtree is doomed as a whole: leaves first.
        for node in reversed(doomed):
            if node.lock_ref or node.children:
                raise InvariantViolation("INV-6", "a node of a failed step is still in use")
            parent = node.parent
            assert parent is not None
            freed += self._remove(node)
            self._offer(parent)
        return freed

    def clear(self) -> None:
        """Forget everything; for a worker that is gone. Nothing may be locked."""
        if self.protected_tokens:
            raise InvariantViolation("INV-6", f"{self.protected_tokens} tokens still locked")
        for node in list(self.nodes()):
            node.parent = None
        self.root.children.clear()
        self._candidates.clear()
        self.evictable_tokens = 0

    def nodes(self) -> Iterator[Node]:
        """Yield every node but the root, parents before children."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
