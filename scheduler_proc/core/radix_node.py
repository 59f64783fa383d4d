"""The node of the radix tree: a run of pages and what the tree knows about it. Only radix.py changes one."""

from collections.abc import Iterator

from quartet.wire.frames import ID_BYTES as ID_BYTES
from scheduler_proc.core.session import Session

Namespace = tuple[str, ...]
ChildKey = bytes | tuple[Namespace, bytes]
"""A node's first page; at the root, where the namespaces part, (namespace, first page)."""


class Node:
    """A run of pages.

    `step` is the step that wrote the last of them. `lock_ref` counts locks here and below. `serial` is unique;
    `creation` is the order of creation, which the upper part of a split inherits. `last_access` is the tree's clock at
    the last use. `hit_count` counts the requests that have inserted through the node, `urgency` is the best (smallest)
    of theirs, so it never improves on the way down. `session` is the one whose last turn ended in the node.
    """

    __slots__ = (
        "child_key",
        "children",
        "creation",
        "hit_count",
        "key",
        "last_access",
        "lock_ref",
        "pages",
        "parent",
        "serial",
        "session",
        "step",
        "urgency",
    )

    def __init__(
        self,
        parent: "Node | None",
        child_key: ChildKey,
        key: bytes,
        pages: list[int],
        step: int,
        serial: int,
        urgency: int = 0,
    ) -> None:
        self.parent = parent
        self.child_key = child_key
        self.key = key
        self.pages = pages
        self.step = step
        self.serial = self.creation = serial
        self.urgency = urgency
        self.children: dict[ChildKey, Node] = {}
        self.lock_ref = 0
        self.last_access = 0
        self.hit_count = 0
        self.session: Session | None = None

    @property
    def is_evictable(self) -> bool:
        """Say whether the node may be removed at once: in the tree, a leaf, not locked, not the root."""
        return self.parent is not None and not self.children and not self.lock_ref


def session_at(node: Node | None) -> Session | None:
    """Return the session whose sequence the path to `node` begins with: the longest one of several."""
    while node is not None:
        if node.session is not None:
            return node.session
        node = node.parent
    return None


def below(root: Node) -> Iterator[Node]:
    """Yield every node below `root`, parents before children."""
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def common_bytes(node_key: bytes, key: bytes, at: int, end: int, page_bytes: int) -> int:
    """Return how many bytes of `node_key` stand at `key[at:end]`, in whole pages; the first page is known to.

    Where they part is found by bisection, so that each byte is compared about once, and never in Python.
    """
    size = min(len(node_key), end - at)
    if size == len(node_key) and key.startswith(node_key, at):
        return size
    low, high = 1, size // page_bytes
    while low < high:
        middle = (low + high + 1) // 2
        if key.startswith(node_key[low * page_bytes : middle * page_bytes], at + low * page_bytes):
            low = middle
        else:
            high = middle - 1
    return low * page_bytes
