"""What one sequence holds of the KV cache. kv.py and saved_states.py change it; prefill.py and batch.py count up
`num_computed_tokens`, and prefill.py sets `cuts`.

0              protected          num_computed_tokens        pages end
| tree-owned, locked | private pages ............ | not yet written |
"""

from typing import NamedTuple

from scheduler_proc.core.radix_node import Namespace, Node

NONE = -1
"""In place of the number of a checkpoint."""


class PendingCheckpoint(NamedTuple):
    """The state of a sequence of `tokens` tokens that `step` saves, before all of them are known."""

    tokens: int
    number: int
    step: int


class WindowLease:
    """What a sequence holds in a page group with a window: `pages` from page index `first` on. Entries of the worker's
    page table before `told` are 0."""

    __slots__ = ("first", "pages", "told")

    def __init__(self, first: int, pages: list[int]) -> None:
        self.first = self.told = first
        self.pages = pages


class Lease:
    """Pages of one sequence and the lock on the part that the tree owns; counts are tokens from the first on.

    `namespace` and `urgency` are those of the last match. `inserted_tokens` outlive a release: the tree has counted a
    hit of this sequence up to there. Without pages `node` is None and the other counts are 0. `windows` is what it
    holds in each page group from 1 on.

    Of a model with states: `reach` counts the tokens that the tree had at the match, `cuts` are the lengths at which
    chunks end so that the state is saved, `saved_tokens` is that of the last one saved, or started from;
    `checkpoint` is what it starts from, `pending` on its way, `row_node` has the last that was saved while it decoded.
    """

    __slots__ = (
        "checkpoint",
        "cuts",
        "inserted_tokens",
        "namespace",
        "node",
        "num_computed_tokens",
        "pages",
        "pending",
        "protected",
        "reach",
        "row_node",
        "saved_tokens",
        "urgency",
        "windows",
    )

    def __init__(self) -> None:
        self.namespace: Namespace = ()
        self.urgency = 0
        self.inserted_tokens = 0
        self.clear()

    def clear(self) -> None:
        """Forget pages and lock, which have been given back."""
        self.pages: list[int] = []
        self.protected = 0
        self.node: Node | None = None
        self.windows: tuple[WindowLease, ...] = ()
        self.num_computed_tokens = 0
        self.reach = self.saved_tokens = 0
        self.cuts: list[int] = []
        self.checkpoint = NONE
        self.pending: PendingCheckpoint | None = None
        self.row_node: Node | None = None

    def up_to_cut(self, length: int) -> int:
        """Return how many of the next `length` tokens come before a cut."""
        return min(length, self.cuts[0] - self.num_computed_tokens) if self.cuts else length
