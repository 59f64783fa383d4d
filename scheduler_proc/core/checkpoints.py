"""Checkpoints: copies of recurrent states at the ends of cached prefixes (rules CKP-1 to CKP-6). A cache group.

A layer with linear attention keeps a state of fixed size for each sequence, which no longer prefix can be taken back
to. The worker has memory for a number of copies; one belongs to the end of a node of the tree, is on its way there, or
is free. Losing one shortens hits and nothing else.

    free ──take──► of a lease, in flight ──hold──► new ────use────► proven
                                                    │ ◄──least lately──│
    free ◄── node removed, step failed ─────────────┴──────────────────┘

What has been used once is likely to be used again, most of the rest never is: Marconi (Pan et al., arXiv 2411.19379)
therefore saves states where prompts have been seen to part, and SGLang's MambaRadixCache does so, too.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from quartet.wire.errors import InvariantViolation
from scheduler_proc.core.lease import NONE, Lease
from scheduler_proc.core.radix_node import Node

NEW_SHARE = 4
"""One checkpoint in so many is left to those that have not been used."""


class Spacing(NamedTuple):
    """Tokens from one checkpoint of a sequence to its next at least: where a prompt is cut for it, which costs a step,
    and where a state passes by anyway, which costs a copy."""

    cut: int = 256
    passing: int = 128


class Saved(NamedTuple):
    """Number of a checkpoint, and the step after which it is written."""

    number: int
    step: int


class Checkpoints:
    """Which of `count` checkpoints belongs to which node. New ones give way first, then proven ones, each by use."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        # Both in the order of their last use.
        self._new: OrderedDict[Node, Saved] = OrderedDict()
        self._proven: OrderedDict[Node, Saved] = OrderedDict()

    @property
    def held_count(self) -> int:
        """How many belong to a node."""
        return len(self._new) + len(self._proven)

    def usable(self, node: Node) -> Node:
        """See CacheGroup."""
        while node.parent is not None and node not in self._new and node not in self._proven:
            node = node.parent
        return node

    def on_split(self, upper: Node, lower: Node) -> None:
        """See CacheGroup. What belongs to the end of a node stays with it."""

    def on_removed(self, node: Node) -> None:
        """See CacheGroup."""
        saved = self._new.pop(node, None) or self._proven.pop(node, None)
        if saved is not None:
            self._free.append(saved.number)

    def use(self, node: Node) -> int:
        """Return the checkpoint of a node, which a sequence is to start from (CKP-1)."""
        saved = self._new.pop(node, None) or self._proven.pop(node)
        self._prove(node, saved)
        return saved.number

    def take(self, is_wanted: bool) -> int:
        """Return a checkpoint to write to, or NONE. One that is known to be wanted may replace a proven one (CKP-4)."""
        if not self._free:
            oldest = next(iter(self._new), None) or (next(iter(self._proven), None) if is_wanted else None)
            if oldest is None:
                return NONE
            self.on_removed(oldest)
        return self._free.pop()

    def give_back(self, number: int) -> None:
        """A checkpoint that was taken has no use."""
        self._free.append(number)

    def hold(self, node: Node, saved: Saved, is_wanted: bool) -> None:
        """A checkpoint that was taken belongs to a node, which is in the tree; if that has one, it keeps it."""
        if node in self._new or node in self._proven:
            self._free.append(saved.number)
        elif is_wanted:
            self._prove(node, saved)
        else:
            self._new[node] = saved

    def give_up_new(self, node: Node) -> None:
        """Give up the checkpoint of a node unless it has been used (CKP-3)."""
        if node in self._new:
            self.on_removed(node)

    def forget_written_since(self, step: int) -> None:
        """Give up those that a step from `step` on has written."""
        for kind in (self._new, self._proven):
            for node in [node for node, saved in kind.items() if saved.step >= step]:
                self.on_removed(node)

    def _prove(self, node: Node, saved: Saved) -> None:
        self._proven[node] = saved
        if len(self._proven) > self.count - self.count // NEW_SHARE:
            oldest, given = self._proven.popitem(last=False)
            self._new[oldest] = given

    def audit(self, nodes: Iterable[Node], leases: Iterable[Lease]) -> None:
        """See CacheGroup: each is free, of one node of the tree, or of one lease."""
        held = [*self._new.items(), *self._proven.items()]
        in_flight = [lease.pending.number for lease in leases if lease.pending is not None]
        numbers = [*self._free, *(saved.number for _, saved in held), *in_flight]
        if sorted(numbers) != list(range(self.count)):
            raise InvariantViolation("INV-10", f"checkpoints free, of nodes and in flight: {sorted(numbers)}")
        if {id(node) for node, _ in held} - {id(node) for node in nodes}:
            raise InvariantViolation("INV-10", "a node that is not in the tree has a checkpoint")
