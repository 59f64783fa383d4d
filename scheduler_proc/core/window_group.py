"""The KV pages of layers that see a window of tokens: a pool beside that of full attention (rules WIN-1 to WIN-6).

A sequence holds pages for what its next row sees and for what the step being formed writes:

    0                       first_seen(C)        C              end of the step's tokens
    | given back, entry 0   | held, cached       | held, not written yet |

A page is held by the leases that use it, cached by the node of the tree that it belongs to, or both; one that is
neither is free, one that is cached and not held can be had for another. Sources: the hybrid KV cache of vLLM (Jenga,
arXiv 2503.18292) and SGLang's SWA radix cache, which gives up the window pages of a node together; here each page goes
by itself.
"""

import collections
from collections.abc import Iterable, Sequence

from quartet.wire.errors import InvariantViolation
from scheduler_proc.core.lease import Lease, WindowLease
from scheduler_proc.core.pages import PagePool
from scheduler_proc.core.radix_node import Node

Pools = Sequence[tuple[int, int]]
"""Window and page count of each page group from 1 on."""
PageEntry = tuple[int, int, int]
"""(page group, index, page): one entry of the page table of a slot; page 0 for one that no row reads any more."""


class WindowGroup:
    """The pages of one group of layers, and what the tree and the leases have of them; see CacheGroup.

    Args:
        number: of the page group, from 1 on.
        window: a token sees itself and the window - 1 before it.
        page_count: of the pool, without its dummy page.
        page_size: P.
    """

    def __init__(self, number: int, window: int, page_count: int, page_size: int) -> None:
        self.number, self.window, self.page_size = number, window, page_size
        self.pool = PagePool(page_count, page_size)
        # Pages before a page boundary of which a row behind it sees a token.
        self._reach = -(-(window - 1) // page_size)
        self._users: dict[int, int] = {}
        self._cached: dict[int, tuple[Node, int]] = {}
        """The node that a page belongs to, and the step that wrote it."""
        self._pages: dict[Node, list[int]] = {}
        """By node a page for each of its pages in group 0, 0 for one that is gone; without a node all are."""
        self._unused: dict[int, None] = {}
        """Cached pages that no lease holds, the one to go first at the beginning."""

    @property
    def reachable_tokens(self) -> int:
        """What could be allocated at most."""
        return self.pool.available_tokens + len(self._unused) * self.page_size

    def first_seen(self, position: int) -> int:
        """Return the index of the first page that a row at this position, or behind it, reads (WIN-1)."""
        return max(0, position + 1 - self.window) // self.page_size

    # Cached prefixes

    def usable(self, node: Node) -> Node:
        """See CacheGroup."""
        while node.parent is not None and not self._has_window(node):
            node = node.parent
        return node

    def _has_window(self, node: Node) -> bool:
        left, at = self._reach, node
        while left > 0 and at.parent is not None:
            own = self._pages.get(at)
            if own is None or not all(own[-left:]):
                return False
            left -= len(own)
            at = at.parent
        return True

    def on_split(self, upper: Node, lower: Node) -> None:
        """See CacheGroup."""
        own = self._pages.pop(lower, None)
        if own is not None:
            count = len(upper.pages)
            self._pages[upper], self._pages[lower] = own[:count], own[count:]
            for page in filter(None, own[:count]):
                self._cached[page] = upper, self._cached[page][1]

    def on_removed(self, node: Node) -> None:
        """See CacheGroup: the node's pages are free, which no lease holds, since none is on the node."""
        for page in filter(None, self._pages.pop(node, ())):
            del self._cached[page]
            if page in self._users:
                raise InvariantViolation("INV-11", f"page {page} of a removed node is held")
            del self._unused[page]
            self.pool.free([page])

    def forget_written_since(self, step: int) -> None:
        """Give up what a failed step and those after it have written into older nodes; every lease is released."""
        for page in [page for page, (_, written) in self._cached.items() if written >= step]:
            self._uncache(page)

    # The life of a lease

    def begin(self, node: Node, count: int) -> WindowLease:
        """Return what a lease holds that begins with the `count` pages of the path to `node`."""
        first, held, at = self.first_seen(count * self.page_size), list[int](), node
        while len(held) < count - first:
            own = self._pages[at]
            held[:0] = own[first - count + len(held) :]
            assert at.parent is not None
            at = at.parent
        for page in held:
            self._hold(page)
        return WindowLease(first, held)

    def extend(self, lease: Lease) -> list[PageEntry]:
        """Give a lease as many pages as it has in group 0; the caller has made room. Returns the entries that the
        worker does not know: these, and those that are given back."""
        held = self._of(lease)
        entries = [(self.number, index, 0) for index in range(held.told, held.first)]
        held.told, end = held.first, held.first + len(held.pages)
        pages = self._allocate(max(0, len(lease.pages) - end))
        for page in pages:
            self._hold(page)
        held.pages += pages
        return entries + [(self.number, end + at, page) for at, page in enumerate(pages)]

    def trim(self, lease: Lease) -> None:
        """Give back the pages that the next row of a lease does not see (WIN-2).

        The steps in flight still read them, and are over before the step being formed writes."""
        held = self._of(lease)
        surplus = self.first_seen(lease.num_computed_tokens) - held.first
        if surplus > 0:
            for page in held.pages[:surplus]:
                self._give_back(page)
            del held.pages[:surplus]
            held.first += surplus

    def insert(self, lease: Lease, node: Node, count: int, since: int, step: int) -> None:
        """Cache a lease's pages with index `since` up to `count`, where the path to `node` ends, as far as the nodes
        have none (WIN-3). Step `step` writes the last of them, or has."""
        held, end, at = self._of(lease), count, node
        while end > since and at.parent is not None:
            begin = end - len(at.pages)
            own = self._pages.setdefault(at, [0] * len(at.pages))
            for index in range(max(begin, since, held.first), end):
                page = held.pages[index - held.first]
                if not own[index - begin] and page not in self._cached:
                    own[index - begin] = page
                    self._cached[page] = at, step
            end, at = begin, at.parent

    def release(self, lease: Lease) -> None:
        """Give back everything that a lease holds; what is cached stays so until it is wanted."""
        for page in self._of(lease).pages:
            self._give_back(page)

    def sole_tokens(self, lease: Lease) -> int:
        """Return the tokens that can be had again once a lease ends."""
        return self.page_size * sum(self._users[page] == 1 for page in self._of(lease).pages)

    def growth(self, lease: Lease, tokens: float) -> float:
        """Return how many of the next `tokens` tokens of a lease take room beyond what it holds (WIN-4)."""
        return min(tokens, max(0, self.window - len(self._of(lease).pages) * self.page_size))

    # Pages

    def _of(self, lease: Lease) -> WindowLease:
        return lease.windows[self.number - 1]

    def _allocate(self, count: int) -> list[int]:
        while self._unused and self.pool.available_tokens < count * self.page_size:
            self._uncache(next(iter(self._unused)))
        return self.pool.allocate(count)

    def _uncache(self, page: int) -> None:
        node, _ = self._cached.pop(page)
        own = self._pages[node]
        own[own.index(page)] = 0
        del self._unused[page]
        self.pool.free([page])

    def _hold(self, page: int) -> None:
        self._users[page] = self._users.get(page, 0) + 1
        self._unused.pop(page, None)

    def _give_back(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page in self._cached:
            self._unused[page] = None
        else:
            self.pool.free([page])

    def audit(self, nodes: Iterable[Node], leases: Iterable[Lease]) -> None:
        """See CacheGroup: pages have the owners that nodes and leases name, and each lease what its next row sees."""
        users: collections.Counter[int] = collections.Counter()
        for lease in leases:
            if not lease.windows:
                continue
            held = self._of(lease)
            users.update(held.pages)
            is_short = held.first > self.first_seen(lease.num_computed_tokens)
            if is_short or held.first + len(held.pages) != len(lease.pages):
                self._fail(f"a lease of {lease.num_computed_tokens} tokens holds from page {held.first} on")
        cached = {page: node for node in nodes for page in filter(None, self._pages.get(node, ()))}
        if dict(users) != self._users or cached != {page: node for page, (node, _) in self._cached.items()}:
            self._fail("users or nodes of pages differ from what leases and tree have")
        if set(self._unused) != cached.keys() - users.keys():
            self._fail("pages that are cached and not held are not those that can be had")
        owned = [*self.pool.free_pages(), *(cached.keys() | users.keys())]
        if sorted(owned) != list(range(1, self.pool.page_count + 1)):
            self._fail(f"{len(owned)} pages have an owner, of {self.pool.page_count}")

    def _fail(self, detail: str) -> None:
        raise InvariantViolation("INV-11", f"window {self.window}: {detail}")
