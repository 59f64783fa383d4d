"""What has happened to the pages of the radix tree since it was last asked: for consumers outside the engine.

The tree reports each leaf that it adds or removes; a split changes no page and is not reported. A page stands for one
prefix from its PagesStored to its PagesRemoved, so page numbers name prefixes until they are reused.
"""

from collections.abc import Iterable
from typing import NamedTuple

from scheduler_proc.core.radix_node import Namespace, Node


class PagesStored(NamedTuple):
    """A run of whole pages has entered the tree.

    `parent_page` holds the tokens before them, 0 at the beginning of a sequence, where alone `namespace` is given.
    `key` are the tokens of `pages` as little-endian int32.
    """

    parent_page: int
    pages: list[int]
    key: bytes
    namespace: Namespace


class PagesRemoved(NamedTuple):
    """A run of pages has left the tree; nothing that is stored continues them."""

    pages: list[int]


class PagesCleared(NamedTuple):
    """The tree is empty."""


PageChange = PagesStored | PagesRemoved | PagesCleared


class PageLog:
    """The changes of one tree after the other, parents before children.

    Args:
        limit: most changes that are kept. Beyond it what the tree holds takes their place.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changes: list[PageChange] = [PagesCleared()]
        self._has_overflown = False

    def stored(self, leaf: Node) -> None:
        """Note a leaf that the tree has added."""
        self._put(_stored(leaf))

    def removed(self, leaf: Node) -> None:
        """Note a leaf that the tree has removed."""
        self._put(PagesRemoved(leaf.pages))

    def cleared(self) -> None:
        """Note that the tree is empty, whatever was noted before."""
        self._changes, self._has_overflown = [PagesCleared()], False

    def take(self, nodes: Iterable[Node]) -> list[PageChange]:
        """Return the changes since the last call; `nodes` are those of the tree, parents before children."""
        changes, self._changes = self._changes, []
        if self._has_overflown:
            self._has_overflown = False
            return [PagesCleared(), *(_stored(node) for node in nodes)]
        return changes

    def _put(self, change: PageChange) -> None:
        if len(self._changes) < self._limit:
            self._changes.append(change)
        else:
            self._has_overflown = True


def _stored(node: Node) -> PagesStored:
    parent, child_key = node.parent, node.child_key
    assert parent is not None
    if isinstance(child_key, bytes):
        return PagesStored(parent.pages[-1], node.pages, node.key, ())
    return PagesStored(0, node.pages, node.key, child_key[0])
