"""The radix tree: KV pages by the tokens that they hold (rules TREE-1 to TREE-7, and 4.7 for priorities).

Keys are little-endian int32 bytes, so that comparing a page is comparing bytes. A node's key is a whole number of
pages; children are found by their first page, at the root by (namespace, first page). Source: SGLang's radix cache.

The tree knows page numbers, not the pool: the caller of an eviction frees what is returned.
"""

import itertools
from collections.abc import Iterator, Sequence

from quartet.wire.errors import InvariantViolation
from scheduler_proc.core.cache_groups import CacheGroup, usable_match
from scheduler_proc.core.eviction import Evictables
from scheduler_proc.core.page_log import PageLog
from scheduler_proc.core.radix_audit import audit_nodes
from scheduler_proc.core.radix_node import ID_BYTES, ChildKey, Namespace, Node, below, common_bytes

__all__ = ["ID_BYTES", "ChildKey", "Namespace", "Node", "RadixTree"]


class RadixTree:
    """Pages of finished and running sequences, shared by prefix.

    `log`, if one is set, is told of every page that comes or goes. `evictable_tokens` and `protected_tokens` (in locked
    nodes) add up to all it holds. `version` rises whenever a match could come out differently: when pages come or go,
    but not when a node is split.

    Args:
        page_size: tokens of a page (P).
        strategy: which leaves are evicted first, a name in eviction.STRATEGIES; raises ConfigError for another.
        groups: what the model keeps beside the pages; they are told what becomes of nodes.
    """

    def __init__(self, page_size: int, strategy: str = "lru", groups: Sequence[CacheGroup] = ()) -> None:
        self.page_size = page_size
        self.groups = tuple(groups)
        self.strategy = strategy
        self._page_bytes = page_size * ID_BYTES
        self._clock = 0
        self._serials = itertools.count(1)
        self._evictables = Evictables(strategy, page_size)
        self.root = Node(None, b"", b"", [], 0, 0)
        self.root.lock_ref = 1
        self.version = 0
        self.protected_tokens = 0
        self.log: PageLog | None = None

    @property
    def evictable_tokens(self) -> int:
        """Tokens in unlocked nodes; all of them can be evicted, since nothing below such a node is locked (TREE-5)."""
        return self._evictables.tokens

    def match(self, key: bytes, namespace: Namespace = ()) -> tuple[list[int], Node]:
        """Return the pages of the longest cached prefix of `key` and the node it ends in (TREE-2).

        A partial match splits the node at the page boundary. The path counts as just used.
        """
        path, _ = self._walk(key, len(key), namespace)
        return [page for node in path for page in node.pages], path[-1] if path else self.root

    def match_length(
        self, key: bytes, limit_tokens: int, namespace: Namespace = (), known: tuple[int, Node] | None = None
    ) -> tuple[int, Node]:
        """Match the first `limit_tokens` of `key` as `match` does, but return the tokens found instead of the pages.

        `known` is an earlier answer of this tree for `key` or a beginning of it: if its node is still there, so is all
        above it, and only what has come since is compared.
        """
        if known is None or (known[1].parent is None and known[1] is not self.root):
            known = 0, self.root
        path, matched = self._walk(key, limit_tokens * ID_BYTES, namespace, known[1], known[0] * ID_BYTES)
        return matched // ID_BYTES, path[-1] if path else known[1]

    def usable(self, node: Node, tokens: int) -> tuple[Node, int]:
        """Return how far a match that ends at `node`, `tokens` deep, can be used: node and depth (TREE-12)."""
        return usable_match(self.groups, node, tokens, self.page_size)

    def touch(self, node: Node) -> None:
        """Count the path to `node` as just used, as a match that ends there would."""
        self._clock += 1
        self._mark_used(node)
        self._evictables.on_use(node)

    def _mark_used(self, node: Node) -> None:
        while node.parent is not None:
            node.last_access = self._clock
            node = node.parent

    def _walk(
        self, key: bytes, end: int, namespace: Namespace, start: Node | None = None, at: int = 0
    ) -> tuple[list[Node], int]:
        """Descend along `key[:end]` from `start`, which is at byte `at`; returns nodes passed and bytes matched."""
        self._clock += 1
        node, path = start or self.root, list[Node]()
        self._mark_used(node)
        end = min(end, len(key)) // self._page_bytes * self._page_bytes
        while at < end:
            first = key[at : at + self._page_bytes]
            child = node.children.get((namespace, first) if node is self.root else first)
            if child is None:
                break
            common = common_bytes(child.key, key, at, end, self._page_bytes)
            if common < len(child.key):
                child = self._split(child, common)
            child.last_access = self._clock
            path.append(child)
            at += common
            node = child
        self._evictables.on_use(node)
        return path, at

    def insert(
        self,
        key: bytes,
        pages: list[int],
        step: int,
        namespace: Namespace = (),
        urgency: int = 0,
        counted_from: int = 0,
    ) -> tuple[int, list[int], Node]:
        """Add `pages` under `key`, whose lengths agree and are whole pages (TREE-4).

        Returns the tokens already present, the tree's pages for all of `key`, and the last node. Where the tree had
        pages already it keeps its own; the caller frees its duplicates.

        Args:
            key: token ids of all of the sequence so far.
            pages: its pages, from the first on.
            step: the step that writes the last of them.
            namespace: sequences of different namespaces share nothing.
            urgency: of the request; smaller is more urgent.
            counted_from: tokens that this request has inserted before. Nodes that end within them have counted it.
        """
        if len(key) != len(pages) * self._page_bytes:
            raise InvariantViolation("INV-5", f"{len(pages)} pages inserted under a key of {len(key)} bytes")
        path, at = self._walk(key, len(key), namespace)
        present = [page for node in path for page in node.pages]
        fresh = pages[len(present) :]
        if fresh:
            path.append(self._add_leaf(path[-1] if path else self.root, key[at:], fresh, step, namespace, urgency))
        self._count_request(path, urgency, counted_from)
        return at // ID_BYTES, present + fresh, path[-1] if path else self.root

    def _add_leaf(
        self, parent: Node, key: bytes, pages: list[int], step: int, namespace: Namespace, urgency: int
    ) -> Node:
        first = key[: self._page_bytes]
        child_key: ChildKey = (namespace, first) if parent is self.root else first
        leaf = Node(parent, child_key, key, pages, step, next(self._serials), urgency)
        leaf.last_access = self._clock
        parent.children[child_key] = leaf
        self.version += 1
        self._evictables.book(leaf, len(pages))
        self._evictables.offer(leaf)
        if self.log is not None:
            self.log.stored(leaf)
        return leaf

    def _count_request(self, path: list[Node], urgency: int, counted_from: int) -> None:
        """Credit a request to the nodes that it has been inserted through (TREE-4, 4.7)."""
        end = 0
        for node in path:
            end += len(node.pages) * self.page_size
            node.hit_count += end > counted_from
            if urgency < node.urgency:
                if not node.lock_ref:
                    self._evictables.book(node, -len(node.pages))
                node.urgency = urgency
                if not node.lock_ref:
                    self._evictables.book(node, len(node.pages))

    def _split(self, lower: Node, at: int) -> Node:
        """Split `lower` after `at` bytes; the upper part inherits, the lower keeps its identity (TREE-3)."""
        count = at // self._page_bytes
        parent = lower.parent
        assert parent is not None
        upper = Node(
            parent, lower.child_key, lower.key[:at], lower.pages[:count], lower.step, next(self._serials), lower.urgency
        )
        upper.lock_ref, upper.last_access = lower.lock_ref, lower.last_access
        upper.creation, upper.hit_count, upper.session = lower.creation, lower.hit_count, lower.session
        parent.children[upper.child_key] = upper
        lower.key, lower.pages, lower.parent = lower.key[at:], lower.pages[count:], upper
        lower.child_key = lower.key[: self._page_bytes]
        upper.children[lower.child_key] = lower
        for group in self.groups:
            group.on_split(upper, lower)
        return upper

    def lock(self, node: Node) -> None:
        """Protect the path from `node` to the root from eviction (TREE-5). Locks nest."""
        while node.parent is not None:
            if node.lock_ref == 0:
                self._evictables.book(node, -len(node.pages))
                self.protected_tokens += len(node.pages) * self.page_size
            node.lock_ref += 1
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one lock; raises InvariantViolation if there is none."""
        while node.parent is not None:
            if node.lock_ref == 0:
                raise InvariantViolation("INV-6", "a node is unlocked that was not locked")
            node.lock_ref -= 1
            if node.lock_ref == 0:
                self._evictables.book(node, len(node.pages))
                self.protected_tokens -= len(node.pages) * self.page_size
                self._evictables.offer(node)
            node = node.parent

    def evict(self, tokens: int, cuts: bool = False) -> list[int]:
        """Remove whole leaves, or as many pages of the last as `cuts` says, in the strategy's order, until `tokens`
        are freed or none is left (TREE-6, RET-19). Returns the freed pages; may overshoot, may be fewer."""
        freed: list[int] = []
        while len(freed) * self.page_size < tokens and (leaf := self._evictables.pop()) is not None:
            if cuts and (surplus := len(freed) + len(leaf.pages) + -tokens // self.page_size) > 0:
                self._split(leaf, surplus * self._page_bytes)
            freed += self._remove(leaf)
        return freed

    def evict_for_priority(self, urgency: int, need_tokens: int, available_tokens: int) -> list[int] | None:
        """Make room for a request at the cost of strictly less urgent ones alone (cache preemption, 4.7).

        Returns the freed pages, worst urgency first, then oldest access: none if `available_tokens` suffice. Returns
        None, and evicts nothing, if all of them together would not free enough.
        """
        shortage = need_tokens - available_tokens
        if shortage <= 0:
            return []
        if self.evictable_from(urgency + 1) < shortage:
            return None
        return self.evict_from(urgency + 1, shortage)

    def evictable_from(self, urgency: int) -> int:
        """Return the evictable tokens in nodes whose urgency is `urgency` or worse."""
        return self._evictables.tokens_from(urgency)

    def evict_from(self, urgency: int, tokens: int) -> list[int]:
        """Evict as `evict` does, but only nodes whose urgency is `urgency` or worse: worst first, then oldest."""
        freed: list[int] = []
        while len(freed) * self.page_size < tokens and (leaf := self._evictables.pop_from(urgency)) is not None:
            freed += self._remove(leaf)
        return freed

    def _remove(self, leaf: Node) -> list[int]:
        """Take an evictable leaf out; its parent may be the next."""
        parent = leaf.parent
        assert parent is not None
        del parent.children[leaf.child_key]
        leaf.parent = None
        self.version += 1
        self._evictables.forget(leaf)
        self._evictables.offer(parent)
        if self.log is not None:
            self.log.removed(leaf)
        for group in self.groups:
            group.on_removed(leaf)
        return leaf.pages

    def remove_written_since(self, step: int) -> list[int]:
        """Remove every node whose pages a step from `step` on has written; returns the pages.

        For a step that failed. All locks on such nodes have been released before.
        """
        written = [node for node in self.nodes() if node.step >= step]
        freed: list[int] = []
        # A child is never older than its parent, so whole subtrees go: leaves first.
        for node in reversed(written):
            if node.lock_ref or node.children:
                raise InvariantViolation("INV-6", "a node of a failed step is still in use")
            freed += self._remove(node)
        return freed

    def clear(self) -> None:
        """Forget everything; for a worker that is gone. Nothing may be locked."""
        if self.protected_tokens:
            raise InvariantViolation("INV-6", f"{self.protected_tokens} tokens still locked")
        for node in list(self.nodes()):
            node.parent = None
            for group in self.groups:
                group.on_removed(node)
        self.root.children.clear()
        self._evictables.clear()
        self.version += 1
        if self.log is not None:
            self.log.cleared()

    def nodes(self) -> Iterator[Node]:
        """Yield every node but the root, parents before children."""
        return below(self.root)

    def audit(self) -> None:
        """Raise InvariantViolation where counters, links or the eviction order disagree with a walk (INV-4 to 6)."""
        self._evictables.audit(audit_nodes(self.root, self.page_size, self.protected_tokens))
