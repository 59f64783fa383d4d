"""The radix tree against a model that keeps a record for every page: sizes, locks, matches, urgency, evictions.

The model has no nodes. It knows for each prefix of whole pages which step wrote it, when it was last used, how many
requests came through and the best urgency of theirs. The tree must agree with it page by page after every operation.
"""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quartet.wire.frames import pack_ids
from scheduler_proc.core.radix import Namespace, Node, RadixTree

Prefix = tuple[Namespace, tuple[int, ...]]
IDS = st.lists(st.integers(0, 1), max_size=9)
NAMESPACES = st.sampled_from([("",), ("x",)])
WINNERS = {
    "lru": lambda page, node: page.used,
    "lfu": lambda page, node: (page.hits, page.used),
    "fifo": lambda page, node: node.creation,
    "mru": lambda page, node: -page.used,
    "filo": lambda page, node: -node.creation,
    "priority": lambda page, node: (-page.urgency, page.used),
    "slru": lambda page, node: (page.hits >= 2, page.used),
}
"""Sort keys for eviction, stated over again from rule TREE-7."""


@dataclass
class PageRecord:
    page: int
    used: int
    urgency: int
    hits: int = 0


class RadixMachine(RuleBasedStateMachine):
    @initialize(page_size=st.sampled_from([1, 2]), strategy=st.sampled_from(sorted(WINNERS)))
    def build(self, page_size: int, strategy: str) -> None:
        self.tree = RadixTree(page_size, strategy)
        self.strategy = strategy
        self.size = page_size
        self.pages: dict[Prefix, PageRecord] = {}
        self.locks: list[tuple[Node, list[Prefix]]] = []
        self.ends: list[tuple[Node, list[Prefix]]] = []
        self.next_page = 1
        self.clock = 0

    def prefixes(self, namespace: Namespace, ids: list[int]) -> list[Prefix]:
        ends = range(self.size, len(ids) + 1, self.size)
        return [(namespace, tuple(ids[:end])) for end in ends]

    def use(self, prefixes: list[Prefix]) -> None:
        for prefix in prefixes:
            self.pages[prefix].used = self.clock

    @rule(ids=IDS, namespace=NAMESPACES, urgency=st.integers(0, 3))
    def insert(self, ids: list[int], namespace: Namespace, urgency: int) -> None:
        ids = ids[: len(ids) // self.size * self.size]
        prefixes = self.prefixes(namespace, ids)
        own = list(range(self.next_page, self.next_page + len(prefixes)))
        self.next_page += len(own)
        present, pages, node = self.tree.insert(pack_ids(ids), own, 0, namespace, urgency)
        self.clock += 1
        assert present == self.size * sum(prefix in self.pages for prefix in prefixes)
        for prefix, page in zip(prefixes, own, strict=True):
            record = self.pages.setdefault(prefix, PageRecord(page, self.clock, urgency))
            record.hits += 1
            record.urgency = min(record.urgency, urgency)
        self.use(prefixes)
        assert pages == [self.pages[prefix].page for prefix in prefixes]
        self.ends.append((node, prefixes))

    @rule(ids=IDS, namespace=NAMESPACES, limit=st.integers(0, 9))
    def match(self, ids: list[int], namespace: Namespace, limit: int) -> None:
        found = [prefix for prefix in self.prefixes(namespace, ids[:limit]) if prefix in self.pages]
        tokens, node = self.tree.match_length(pack_ids(ids), limit, namespace)
        self.clock += 1
        self.use(found)
        assert tokens == len(found) * self.size
        assert self.tree.match(pack_ids(ids[:limit]), namespace) == ([self.pages[each].page for each in found], node)
        self.clock += 1
        self.use(found)
        self.ends.append((node, found))

    @precondition(lambda self: self.ends)
    @rule(data=st.data(), ids=IDS)
    def match_further(self, data: st.DataObject, ids: list[int]) -> None:
        """An earlier answer, perhaps evicted since, spares the way but changes nothing."""
        node, prefixes = data.draw(st.sampled_from(self.ends))
        namespace, start = prefixes[-1] if prefixes else (("",), ())
        key = [*start, *ids]
        found = [prefix for prefix in self.prefixes(namespace, key) if prefix in self.pages]
        answer = self.tree.match_length(pack_ids(key), len(key), namespace, (len(start), node))
        self.clock += 1
        self.use(found)
        assert answer[0] == len(found) * self.size

    @precondition(lambda self: self.ends)
    @rule(data=st.data())
    def lock(self, data: st.DataObject) -> None:
        node, prefixes = data.draw(st.sampled_from(self.ends))
        if all(prefix in self.pages for prefix in prefixes) and (node.parent is not None or not prefixes):
            self.tree.lock(node)
            self.locks.append((node, prefixes))

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        node, _ = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        self.tree.unlock(node)

    @rule(tokens=st.integers(0, 8))
    def evict(self, tokens: int) -> None:
        expected = self.victims(tokens, self.strategy, worst_allowed=None)
        assert self.tree.evict(tokens) == expected
        self.forget(expected)

    @rule(urgency=st.integers(-1, 3), need=st.integers(0, 12), available=st.integers(0, 4))
    def evict_for_priority(self, urgency: int, need: int, available: int) -> None:
        locked = self.locked()
        eligible = sum(record.urgency > urgency for prefix, record in self.pages.items() if prefix not in locked)
        expected = None
        if available + eligible * self.size >= need or available >= need:
            expected = self.victims(need - available, "priority", worst_allowed=urgency + 1)
        assert self.tree.evict_for_priority(urgency, need, available) == expected
        self.forget(expected or [])

    def locked(self) -> set[Prefix]:
        return {prefix for _, prefixes in self.locks for prefix in prefixes}

    def victims(self, tokens: int, strategy: str, worst_allowed: int | None) -> list[int]:
        """Pages that must go, by looking at every node again for each one taken."""
        locked = self.locked()
        nodes = {run: node for run, node in self.runs() if run not in locked}
        freed: list[int] = []
        while len(freed) * self.size < tokens:
            leaves = [
                (WINNERS[strategy](self.pages[run], node), run)
                for run, node in nodes.items()
                if not any(other != run and is_below(other, run) for other in nodes)
                and not any(is_below(other, run) for other in locked)
                and (worst_allowed is None or self.pages[run].urgency >= worst_allowed)
            ]
            if not leaves:
                break
            _, run = min(leaves, key=lambda item: item[0])
            freed += nodes.pop(run).pages
        return freed

    def runs(self) -> list[tuple[Prefix, Node]]:
        found = []
        for node in self.tree.nodes():
            key, above = b"", node
            while above.parent is not None:
                key, top, above = above.key + key, above, above.parent
            assert isinstance(top.child_key, tuple)
            found.append(((top.child_key[0], tuple(memoryview(key).cast("i"))), node))
        return found

    def forget(self, pages: list[int]) -> None:
        gone = set(pages)
        self.pages = {prefix: record for prefix, record in self.pages.items() if record.page not in gone}

    @invariant()
    def agrees(self) -> None:
        self.tree.audit()
        held = {}
        for (namespace, ids), node in self.runs():
            start = len(ids) - len(node.pages) * self.size
            for position, page in enumerate(node.pages):
                prefix = namespace, ids[: start + (position + 1) * self.size]
                held[prefix] = PageRecord(page, node.last_access, node.urgency, node.hit_count)
        assert held == self.pages
        locked = self.locked()
        assert self.tree.protected_tokens == len(locked) * self.size
        assert self.tree.evictable_tokens == (len(self.pages) - len(locked)) * self.size


def is_below(other: Prefix, prefix: Prefix) -> bool:
    return other[0] == prefix[0] and other[1][: len(prefix[1])] == prefix[1]


RadixMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRadixAgainstModel = pytest.mark.timeout(60)(RadixMachine.TestCase)
