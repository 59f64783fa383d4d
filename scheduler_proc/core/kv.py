"""The KV pages of requests: the pool and the radix tree under one roof, with the life cycle of rules TREE-8 to TREE-10.

Every page has one owner: the free list, one tree node, or the private range of one request (INV-3).
"""

from quartet.wire.errors import InvariantViolation
from scheduler_proc.core.lengths import ceil_to, floor_to
from scheduler_proc.core.pages import PagePool
from scheduler_proc.core.radix import ID_BYTES, RadixTree
from scheduler_proc.core.request import Request


class KvCache:
    """Page accounting of one worker incarnation.

    Args:
        page_count: pages that the worker holds, without the dummy.
        page_size: P.
        is_sharing: whether finished and running requests share prefixes (--disable-radix-cache turns it off).
        strategy: of eviction, a name of --radix-eviction-policy.
        by_priority: a request's room is made at the cost of less urgent prefixes first (4.7).
        isolates: and never at the cost of more urgent ones.
    """

    def __init__(
        self,
        page_count: int,
        page_size: int,
        is_sharing: bool,
        strategy: str = "lru",
        by_priority: bool = False,
        isolates: bool = False,
    ) -> None:
        self.page_size = page_size
        self.pool = PagePool(page_count, page_size)
        self.tree = RadixTree(page_size, strategy)
        self.is_sharing = is_sharing
        self._by_priority = by_priority
        self._isolates = by_priority and isolates

    @property
    def capacity_tokens(self) -> int:
        """N."""
        return self.pool.capacity_tokens

    def reachable_tokens(self) -> int:
        """avail + evict: what could be allocated at most."""
        return self.pool.available_tokens + self.tree.evictable_tokens

    def withheld_tokens(self, urgency: int) -> int:
        """Return the evictable tokens that a request of that urgency may not have: more urgent requests' prefixes."""
        if not self._isolates:
            return 0
        return self.tree.evictable_tokens - self.tree.evictable_from(urgency)

    def match_and_lock(self, request: Request) -> int:
        """Find the cached prefix of a waiting request, at most L-1 tokens, and lock it; returns its length."""
        request.launched = len(request.output_ids)
        if not self.is_sharing:
            request.node = self.tree.root
            return 0
        pages, node = self.tree.match(self._key(request, request.total_tokens - 1), request.namespace)
        self.tree.lock(node)
        request.node, request.pages = node, pages
        request.protected = request.num_computed_tokens = len(pages) * self.page_size
        return request.protected

    def unlock_match(self, request: Request) -> None:
        """Undo `match_and_lock` of a request that was not admitted."""
        assert request.node is not None
        self.tree.unlock(request.node)
        request.forget_kv()

    def make_room(self, tokens: int) -> bool:
        """Evict only what is short of `tokens`; returns whether they are available now."""
        shortage = tokens - self.pool.available_tokens
        if shortage > 0:
            self.pool.free(self.tree.evict(shortage))
        return self.pool.available_tokens >= tokens

    def make_room_for(self, request: Request, tokens: int, is_alone: bool) -> bool:
        """Make room for a request that enters: less urgent prefixes go first (4.7). With isolation no other goes,
        unless the engine is otherwise idle."""
        if self._by_priority:
            freed = self.tree.evict_for_priority(request.urgency, tokens, self.pool.available_tokens)
            if freed is not None:
                self.pool.free(freed)
                return True
            if self._isolates and not is_alone:
                shortage = tokens - self.pool.available_tokens
                self.pool.free(self.tree.evict_from(request.urgency, shortage))
                return self.pool.available_tokens >= tokens
        return self.make_room(tokens)

    def extend(self, request: Request, end: int) -> list[int]:
        """Give a request pages up to token `end`; the caller has made room. Returns the new pages."""
        wanted = ceil_to(end, self.page_size) // self.page_size - len(request.pages)
        pages = self.pool.allocate(max(0, wanted))
        request.pages += pages
        return pages

    def register(self, request: Request, step: int) -> tuple[list[tuple[int, int]], list[int]]:
        """Put the whole pages computed so far into the tree when the step that writes them is issued (TREE-8).

        Returns page table writes (index, page) where the tree had pages already, and the request's own pages that
        these replace. The step being issued still writes the request's own, so the caller applies the writes with
        the next step, and frees the pages once this one is issued.
        """
        if not self.is_sharing:
            return [], []
        length = floor_to(request.num_computed_tokens, self.page_size)
        old_node, old_protected = request.node, request.protected
        assert old_node is not None
        count = length // self.page_size
        present, pages, node = self.tree.insert(
            self._key(request, length),
            request.pages[:count],
            step,
            request.namespace,
            request.urgency,
            request.inserted_tokens,
        )
        request.inserted_tokens = max(request.inserted_tokens, length)
        duplicates = request.pages[old_protected // self.page_size : present // self.page_size]
        first = old_protected // self.page_size
        writes = [(first + i, pages[first + i]) for i in range(len(duplicates))]
        request.pages[:count] = pages
        request.protected, request.node = length, node
        self.tree.lock(node)
        self.tree.unlock(old_node)
        return writes, duplicates

    def finish(self, request: Request, step: int) -> None:
        """Keep the KV of a finished request in the tree, free the rest, unlock (TREE-9)."""
        known = min(request.num_computed_tokens, request.total_tokens)
        length = floor_to(known, self.page_size) if self.is_sharing else 0
        count = length // self.page_size
        first = request.protected // self.page_size
        if count > first:
            key = self._key(request, length)
            present, _, _ = self.tree.insert(
                key, request.pages[:count], step, request.namespace, request.urgency, request.inserted_tokens
            )
            self.pool.free(request.pages[first : max(first, present // self.page_size)])
        self.pool.free(request.pages[max(first, count) :])
        self._unlock(request)

    def release(self, request: Request) -> int:
        """Free the private pages, unlock the prefix, insert nothing (RET-5). Returns the tokens freed at once."""
        private = request.pages[request.protected // self.page_size :]
        self.pool.free(private)
        self._unlock(request)
        return len(private) * self.page_size

    def _unlock(self, request: Request) -> None:
        if request.node is None:
            raise InvariantViolation("INV-7", f"request {request.rid.hex()} holds no KV to release")
        self.tree.unlock(request.node)
        request.forget_kv()

    @staticmethod
    def _key(request: Request, tokens: int) -> bytes:
        return request.key()[: tokens * ID_BYTES]
