"""What one sequence holds of the KV cache. kv.py changes it; prefill.py and batch.py count up `num_computed_tokens`.

0              protected          num_computed_tokens        pages end
| tree-owned, locked | private pages ............ | not yet written |
"""

from scheduler_proc.core.radix_node import Namespace, Node


class Lease:
    """Pages of one sequence and the lock on the part that the tree owns; counts are tokens from the first on.

    `namespace` and `urgency` are those of the last match. `inserted_tokens` outlive a release: the tree has counted a
    hit of this sequence up to there. Without pages `node` is None and the other counts are 0.
    """

    __slots__ = ("inserted_tokens", "namespace", "node", "num_computed_tokens", "pages", "protected", "urgency")

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
        self.num_computed_tokens = 0
