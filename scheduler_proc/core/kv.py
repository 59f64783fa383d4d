"""The KV cache of one worker: page pool and radix tree under one roof, with the life cycle of rules TREE-8 to TREE-10.

It speaks of leases: what a request is, it does not know. Every page has one owner: the free list, one tree node, or the
private range of one lease (INV-3). Keys are token ids as little-endian int32.
"""

import sys

from quartet.wire.config import SchedulerConfig
from quartet.wire.errors import InvariantViolation
from scheduler_proc.core.checkpoints import Checkpoints, Spacing
from scheduler_proc.core.holds import Holds
from scheduler_proc.core.lease import Lease
from scheduler_proc.core.lengths import ceil_to, floor_to
from scheduler_proc.core.page_log import PageChange, PageLog
from scheduler_proc.core.pages import PagePool
from scheduler_proc.core.radix import ID_BYTES, Namespace, Node, RadixTree
from scheduler_proc.core.session import Session
from scheduler_proc.core.window_group import PageEntry, Pools, WindowGroup


class KvCache:
    """Page accounting of one worker incarnation after the other.

    Args:
        page_count: pages that the worker holds, without the dummy; 0 before a worker is up.
        page_size: P.
        is_sharing: whether finished and running requests share prefixes (--disable-radix-cache turns it off).
        strategy: of eviction, a name of --radix-eviction-policy.
        by_priority: less urgent prefixes are evicted first to make room for a request (4.7).
        isolates: more urgent prefixes are not evicted at all.
        cuts: of the last prefix evicted only as many pages go as are short (RET-19).
    """

    def __init__(
        self,
        page_count: int,
        page_size: int,
        is_sharing: bool,
        strategy: str = "lru",
        by_priority: bool = False,
        isolates: bool = False,
        cuts: bool = False,
    ) -> None:
        self.page_size = page_size
        self._may_share = is_sharing
        self._strategy = strategy
        self._by_priority = by_priority
        self._isolates = by_priority and isolates
        self._cuts = cuts
        self._log: PageLog | None = None
        self.spacing = Spacing()
        self.restart(page_count)

    @classmethod
    def configured(cls, config: SchedulerConfig, page_size: int) -> "KvCache":
        """Return the cache of a worker that is not up yet, as the settings want it."""
        return cls(
            0,
            page_size,
            not config.disable_radix_cache,
            config.radix_eviction_policy,
            config.enable_priority_scheduling,
            config.cache_priority_isolation,
            config.retraction_keeps_kv,
        )

    def restart(self, page_count: int, has_states: bool = False, checkpoints: int = 0, windows: Pools = ()) -> None:
        """Begin with the empty cache of a new worker. With states, which pages do not hold, prefixes are shared as far
        as there are checkpoints of them."""
        self.is_sharing = self._may_share and (not has_states or checkpoints > 0)
        self.checkpoints = Checkpoints(checkpoints) if has_states and self.is_sharing else None
        size, states = self.page_size, [] if self.checkpoints is None else [self.checkpoints]
        self.windows = tuple(WindowGroup(number, *one, size) for number, one in enumerate(windows, 1))
        self.pool = PagePool(page_count, size)
        self.tree = RadixTree(size, self._strategy, [*states, *self.windows])
        self.tree.log = self._log
        self.holds = Holds(self.tree)
        if self._log is not None:
            self._log.cleared()

    def clear(self) -> None:
        """Forget all cached prefixes, whose worker is gone; every lease has been released."""
        self.holds.end_all()
        self.pool.free([page for node in self.tree.nodes() for page in node.pages])
        self.tree.clear()

    def flush(self) -> int:
        """Evict every prefix that no lease holds; returns the tokens freed."""
        self.holds.end_all()
        freed = self.tree.evict(self.tree.evictable_tokens)
        self.pool.free(freed)
        if self._log is not None and not self.tree.protected_tokens:
            self._log.cleared()
        return len(freed) * self.page_size

    def forget_written_since(self, step: int) -> None:
        """Remove what a failed step and those after it have written; every lease on it has been released."""
        self.holds.end_written_since(step)
        if self.checkpoints is not None:
            self.checkpoints.forget_written_since(step)
        self.pool.free(self.tree.remove_written_since(step))
        for group in self.windows:
            group.forget_written_since(step)

    def free(self, pages: list[int]) -> None:
        """Free pages that `register` has replaced, once the step that writes them is issued."""
        self.pool.free(pages)

    # What happens to pages, for consumers outside

    def keep_log(self, limit: int) -> None:
        """Note from here on what happens to the pages of the tree, which is empty; at most `limit` changes."""
        self.tree.log = self._log = PageLog(limit)

    def take_page_changes(self) -> list[PageChange]:
        """Return what has happened to the pages of the tree since the last call; nothing without `keep_log`."""
        return [] if self._log is None else self._log.take(self.tree.nodes())

    # Room

    @property
    def capacity_tokens(self) -> int:
        """N."""
        return self.pool.capacity_tokens

    def reachable_tokens(self) -> int:
        """avail + evict: what could be allocated at most."""
        return self.pool.available_tokens + self.tree.evictable_tokens

    @property
    def available_tokens(self) -> int:
        """What can be allocated now without evicting a prefix; pages of windows go by themselves."""
        return min(self.pool.available_tokens, *(group.reachable_tokens for group in self.windows), sys.maxsize)

    def withheld_tokens(self, urgency: int) -> int:
        """Return the evictable tokens that a request of that urgency may not have: more urgent requests' prefixes."""
        if not self._isolates:
            return 0
        return self.tree.evictable_tokens - self.tree.evictable_from(urgency)

    def touch(self, key: bytes, namespace: Namespace) -> None:
        """Count the cached prefix of `key` as just used."""
        self.tree.match_length(key, len(key) // ID_BYTES, namespace)

    def sole_tokens(self, lease: Lease) -> int:
        """Return the tokens that can be had again once a lease ends: its own pages, and those that it alone locks."""
        node, count = lease.node, len(lease.pages) - lease.protected // self.page_size
        while node is not None and node.lock_ref == 1 and node.parent is not None:
            count += len(node.pages)
            node = node.parent
        return count * self.page_size

    def make_room(self, tokens: int) -> bool:
        """Evict only what is short of `tokens`, then what is held, as far as needed; say whether they are available, in
        each page group."""
        while (shortage := tokens - self.pool.available_tokens) > 0:
            self.pool.free(self.tree.evict(shortage, self._cuts))
            if self.pool.available_tokens < tokens and not self.holds.end_next():
                return False
        return not self.windows or self.available_tokens >= tokens

    def make_room_for(self, urgency: int, tokens: int, is_alone: bool) -> bool:
        """Make room for a request that enters: less urgent prefixes go first (4.7). With isolation no other goes,
        unless the engine is otherwise idle."""
        if self._by_priority:
            freed = self.tree.evict_for_priority(urgency, tokens, self.pool.available_tokens)
            if freed is not None:
                self.pool.free(freed)
                return self.available_tokens >= tokens
            if self._isolates and not is_alone:
                shortage = tokens - self.pool.available_tokens
                self.pool.free(self.tree.evict_from(urgency, shortage))
                return self.available_tokens >= tokens
        return self.make_room(tokens)

    # Sessions

    def note_session(self, session: Session, key: bytes, namespace: Namespace, until_s: float | None) -> None:
        """Note whose sequence `key` is, and hold its cached prefix until a time, if one is given (SES-1, SES-3)."""
        if self.is_sharing:
            _, node = self.tree.match(key, namespace)
            if node.parent is not None:
                node.session = session
                if until_s is not None:
                    self.holds.begin(session, node, until_s)

    def end_hold(self, session: Session) -> bool:
        """Give up what is held for a session; say whether anything was."""
        return self.holds.end(session)

    # The life of a lease

    def match_and_lock(self, lease: Lease, key: bytes, namespace: Namespace, urgency: int) -> int:
        """Give an empty lease the cached prefix of `key`, as far as it can be used, and lock it; returns its length in
        tokens."""
        lease.namespace, lease.urgency = namespace, urgency
        if not self.is_sharing:
            lease.node = root = self.tree.root
            lease.windows = tuple(group.begin(root, 0) for group in self.windows)
            return 0
        pages, node = self.tree.match(key, namespace)
        tokens = len(pages) * self.page_size
        if self.tree.groups:
            lease.reach = tokens
            node, tokens = self.tree.usable(node, tokens)
            del pages[tokens // self.page_size :]
        self.tree.lock(node)
        lease.node, lease.pages = node, pages
        lease.protected = lease.num_computed_tokens = lease.saved_tokens = tokens
        if self.checkpoints is not None and tokens:
            lease.checkpoint = self.checkpoints.use(node)
        lease.windows = tuple(group.begin(node, len(pages)) for group in self.windows)
        return lease.protected

    def unlock_match(self, lease: Lease) -> None:
        """Undo `match_and_lock` for a request that was not admitted."""
        self._unlock(lease)

    def extend(self, lease: Lease, end: int) -> list[PageEntry]:
        """Give a lease pages up to token `end`; the caller has made room. Returns what is new in its page tables."""
        first = len(lease.pages)
        pages = self.pool.allocate(max(0, ceil_to(end, self.page_size) // self.page_size - first))
        lease.pages += pages
        entries = [(0, first + at, page) for at, page in enumerate(pages)]
        for group in self.windows:
            entries += group.extend(lease)
        return entries

    def trim(self, lease: Lease) -> None:
        """Give back the pages of windows that the next row of a lease does not see."""
        for group in self.windows:
            group.trim(lease)

    def register(
        self, lease: Lease, key: bytes, step: int, tokens: int | None = None
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Put the whole pages computed so far, or the first `tokens`, into the tree when the step that writes them is
        issued (TREE-8).

        Returns page table writes (index, page) where the tree had pages already, and the lease's own pages that these
        replace. The step being issued still writes the lease's own, so the caller applies the writes with the next
        step, and frees the pages once this one is issued.
        """
        if not self.is_sharing:
            return [], []
        length = floor_to(lease.num_computed_tokens, self.page_size) if tokens is None else tokens
        old_node, first = lease.node, lease.protected // self.page_size
        assert old_node is not None
        present, pages, node = self._insert(lease, key, length, step)
        lease.inserted_tokens = max(lease.inserted_tokens, length)
        duplicates = lease.pages[first : present // self.page_size]
        writes = [(first + i, pages[first + i]) for i in range(len(duplicates))]
        lease.pages[: length // self.page_size] = pages
        lease.protected, lease.node = length, node
        self.tree.lock(node)
        self.tree.unlock(old_node)
        return writes, duplicates

    def finish(self, lease: Lease, key: bytes, step: int) -> None:
        """Keep the KV of a finished sequence `key` in the tree, free the rest, unlock (TREE-9)."""
        known = min(lease.num_computed_tokens, len(key) // ID_BYTES)
        length = floor_to(known, self.page_size) if self.is_sharing else 0
        count = length // self.page_size
        first = lease.protected // self.page_size
        if count > first:
            present, _, _ = self._insert(lease, key, length, step)
            lease.inserted_tokens = max(lease.inserted_tokens, length)
            self.pool.free(lease.pages[first : max(first, present // self.page_size)])
        self.pool.free(lease.pages[max(first, count) :])
        self._unlock(lease)

    def release(self, lease: Lease) -> int:
        """Free the private pages, unlock the prefix, insert nothing (RET-5). Returns the tokens freed at once."""
        private = lease.pages[lease.protected // self.page_size :]
        self.pool.free(private)
        self._unlock(lease)
        return len(private) * self.page_size

    def _insert(self, lease: Lease, key: bytes, length: int, step: int) -> tuple[int, list[int], Node]:
        count, since = length // self.page_size, lease.protected // self.page_size
        whose = lease.namespace, lease.urgency, lease.inserted_tokens
        found = self.tree.insert(key[: length * ID_BYTES], lease.pages[:count], step, *whose)
        for group in self.windows:
            group.insert(lease, found[2], count, since, step)
        return found

    def _unlock(self, lease: Lease) -> None:
        if lease.node is None:
            raise InvariantViolation("INV-7", "a lease is released that holds nothing")
        self.tree.unlock(lease.node)
        if lease.pending is not None and self.checkpoints is not None:
            self.checkpoints.give_back(lease.pending.number)
        for group in self.windows:
            group.release(lease)
        lease.clear()
