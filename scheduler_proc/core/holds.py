"""Prefixes that stay in the cache although no lease is on them: locks with an owner and an end (rule SES-4).

Inside of the KV cache. It does not know what an owner is, and reads no clock.
"""

from collections.abc import Iterator

from scheduler_proc.core.radix import Node, RadixTree


class Holds:
    """The held paths of one tree, at most one for each owner."""

    def __init__(self, tree: RadixTree) -> None:
        self._tree = tree
        self._held: dict[object, tuple[float, Node]] = {}
        self.next_end_s: float | None = None
        self.ended_count = 0

    def begin(self, owner: object, node: Node, until_s: float) -> None:
        """Hold the path to `node` for `owner` until a time; what was held for it before is not any more."""
        self._tree.lock(node)
        self.end(owner)
        self._held[owner] = until_s, node
        self._find_next()

    def end(self, owner: object) -> bool:
        """Give up what is held for `owner`; say whether anything was."""
        held = self._held.pop(owner, None)
        if held is None:
            return False
        self._tree.unlock(held[1])
        self.ended_count += 1
        self._find_next()
        return True

    def end_passed(self, now: float) -> None:
        """Give up what was to be held until now."""
        while self.next_end_s is not None and self.next_end_s <= now:
            self.end_next()

    def end_next(self, urgency: int | None = None) -> bool:
        """Give up what would end first, given an urgency of what is less urgent; say whether anything was."""
        owners = (one for one, (_, node) in self._held.items() if urgency is None or node.urgency > urgency)
        owner = min(owners, key=lambda owner: self._held[owner][0], default=None)
        return owner is not None and self.end(owner)

    def end_written_since(self, step: int) -> None:
        """Give up the paths whose last node was written by a step from `step` on."""
        for owner in [owner for owner, (_, node) in self._held.items() if node.step >= step]:
            self.end(owner)

    def end_all(self) -> None:
        """Give up everything."""
        while self.end_next():
            pass

    def _find_next(self) -> None:
        self.next_end_s = min((until_s for until_s, _ in self._held.values()), default=None)

    def nodes(self) -> Iterator[Node]:
        """Yield the last node of each path."""
        return (node for _, node in self._held.values())
