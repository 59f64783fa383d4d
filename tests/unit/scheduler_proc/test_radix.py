"""The radix tree by the book: examples R1 to R8 and rules TREE-1 to TREE-6. Keys are token ids as int32 bytes."""

import itertools

import pytest

from quartet.wire.errors import InvariantViolation
from quartet.wire.frames import SamplingParams, Submit, pack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.radix import Namespace, Node, RadixTree
from scheduler_proc.core.request import Request


class Book:
    """A tree, page numbers to put into it, and token lists instead of bytes."""

    def __init__(self, page_size: int = 1, strategy: str = "lru") -> None:
        self.tree = RadixTree(page_size, strategy)
        self.next_page = 1

    def insert(self, ids: list[int], namespace: Namespace = (), step: int = 0, **fields: int) -> tuple[int, Node]:
        pages = list(range(self.next_page, self.next_page + len(ids) // self.tree.page_size))
        self.next_page += len(pages)
        present, held, node = self.tree.insert(pack_ids(ids), pages, step, namespace, **fields)
        assert held[present // self.tree.page_size :] == pages[present // self.tree.page_size :]
        self.tree.audit()
        return present, node

    def match(self, ids: list[int], namespace: Namespace = ()) -> int:
        pages, node = self.tree.match(pack_ids(ids), namespace)
        assert sum(len(above.pages) for above in path_to(node)) == len(pages)
        self.tree.audit()
        return len(pages) * self.tree.page_size

    def node(self, ids: list[int]) -> Node:
        return self.tree.match(pack_ids(ids))[1]

    def runs(self) -> dict[tuple[int, ...], Node]:
        """All nodes by the token ids of the whole path."""
        found = {}
        for node in self.tree.nodes():
            key = b"".join(above.key for above in path_to(node))
            found[tuple(memoryview(key).cast("i"))] = node
        return found


def path_to(node: Node) -> list[Node]:
    path = []
    while node.parent is not None:
        path.append(node)
        node = node.parent
    return path[::-1]


def test_r1_insert_and_match_share_and_split() -> None:
    """R1, TREE-2, TREE-4."""
    book = Book()
    assert book.insert([1, 2, 3, 4, 5, 6])[0] == 0
    assert book.insert([1, 2, 3, 7, 8])[0] == 3
    assert book.tree.evictable_tokens == 8
    assert book.match([1, 2, 9]) == 2
    assert sorted(book.runs()) == [(1, 2), (1, 2, 3), (1, 2, 3, 4, 5, 6), (1, 2, 3, 7, 8)]
    assert book.match([1, 2, 3, 4, 5, 6]) == 6


def test_r2_matches_are_whole_pages() -> None:
    """R2, TREE-2: P 4."""
    book = Book(page_size=4)
    book.insert([1, 2, 3, 4, 5, 6, 7, 8])
    assert book.match([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == 8
    assert book.match([1, 2, 3, 4, 5, 6, 9, 9]) == 4
    assert book.match([1, 2, 3]) == 0
    assert [len(node.pages) for node in book.tree.nodes()] == [1, 1]


def test_r3_locked_paths_stay_and_leaves_go_whole() -> None:
    """R3, TREE-5, TREE-6."""
    book = Book()
    book.insert([1, 2, 3, 4])
    book.insert([1, 2, 5, 6, 7])
    book.insert([9, 8])
    node = book.node([1, 2, 3, 4])
    book.tree.lock(node)
    assert (book.tree.evictable_tokens, book.tree.protected_tokens) == (5, 4)
    assert len(book.tree.evict(4)) == 5
    book.tree.audit()
    book.tree.unlock(node)
    assert (book.tree.evictable_tokens, book.tree.protected_tokens) == (4, 0)
    assert book.tree.evict(1) == [3, 4]
    assert book.tree.evict(100) == [1, 2]
    assert book.tree.evictable_tokens == 0
    assert not list(book.tree.nodes())


def test_r5_namespaces_share_nothing() -> None:
    """R5, TREE-1: tuples, so that no two of them can look alike."""
    book = Book()
    book.insert([1, 2, 3], ("A",))
    assert [book.match([1, 2, 3], namespace) for namespace in (("A",), ("B",), ())] == [3, 0, 0]
    book.insert([1, 2, 3], ("a", "bc"))
    assert book.match([1, 2, 3], ("ab", "c")) == 0


def test_r6_urgency_is_the_best_of_all_requests_through_the_node() -> None:
    """R6, 4.7: p1 and p7 with high numbers first are urgencies -1 and -7."""
    book = Book()
    book.insert([1, 2, 3, 4], urgency=-1)
    book.insert([1, 2, 8], urgency=-7)
    assert {run: node.urgency for run, node in book.runs().items()} == {(1, 2): -7, (1, 2, 3, 4): -1, (1, 2, 8): -7}
    book.insert([1, 2, 3, 4], urgency=-9)
    assert {run: node.urgency for run, node in book.runs().items()} == {(1, 2): -9, (1, 2, 3, 4): -9, (1, 2, 8): -7}


def test_r7_a_split_keeps_locks_and_sizes() -> None:
    """R7, TREE-3: the holder of the lower part unlocks both."""
    book = Book()
    _, lower = book.insert([1, 2, 3, 4, 5, 6])
    book.tree.lock(lower)
    assert book.match([1, 2, 9]) == 2
    assert [node.lock_ref for node in book.tree.nodes()] == [1, 1]
    assert (book.tree.evictable_tokens, book.tree.protected_tokens) == (0, 6)
    _, leaf = book.insert([1, 2, 7])
    assert (leaf.lock_ref, book.tree.evictable_tokens) == (0, 1)
    assert book.runs()[1, 2, 3, 4, 5, 6] is lower
    book.tree.unlock(lower)
    assert (book.tree.evictable_tokens, book.tree.protected_tokens) == (7, 0)
    book.tree.audit()


def test_r8_a_finished_request_leaves_whole_pages() -> None:
    """R8, TREE-9: P 4, prompt 10 of which 4 are the tree's, 7 outputs: C 16, all in the tree, no tail."""
    kv = KvCache(8, 4, True)
    prompt = list(range(10))
    kv.tree.insert(pack_ids(prompt[:4]), kv.pool.allocate(1), 0, ("", ""))
    submit = Submit(Rid(bytes(16)), 0, 0, "api-0", "detok-0", pack_ids(prompt), b"", SamplingParams())
    request = Request(submit, 7, (), 1, 1, 0.0)
    assert kv.match_and_lock(request.lease, request.key()[:-4], request.namespace, request.urgency) == 4
    kv.extend(request.lease, 16)
    request.output_ids += [50, 51, 52, 53, 54, 55, 56]
    request.lease.num_computed_tokens = 16
    kv.finish(request.lease, request.key(), 1)
    assert (kv.tree.evictable_tokens, kv.tree.protected_tokens, kv.pool.available_tokens) == (16, 0, 16)
    kv.tree.audit()


def test_tree2_a_match_refreshes_its_path_and_nothing_else() -> None:
    """TREE-2: what a split cuts off has not been used."""
    book = Book()
    book.insert([1, 2, 3, 4])
    book.insert([5, 6])
    book.match([1, 2, 9])
    runs = book.runs()
    assert runs[1, 2].last_access > runs[5, 6].last_access > runs[1, 2, 3, 4].last_access


def test_tree2_a_known_answer_is_extended_and_refreshed_as_a_match_would() -> None:
    """TREE-2, POL-3: going on from an earlier answer gives what a match from the root gives."""
    book = Book()
    book.insert([1, 2, 3])
    key = pack_ids([1, 2, 3, 4, 5, 6])
    known = book.tree.match_length(key, 5)
    assert known[0] == 3
    book.insert([1, 2, 3, 4, 5, 6])
    book.match([1, 2, 9])
    other = Book()
    other.insert([1, 2, 3])
    other.match([1, 2, 3, 4, 5])
    other.insert([1, 2, 3, 4, 5, 6])
    other.match([1, 2, 9])
    tokens, node = book.tree.match_length(key, 5, known=known)
    assert (tokens, node) == (5, book.runs()[1, 2, 3, 4, 5])
    assert other.tree.match(key[:20])[0] == [1, 2, 3, 7, 8]
    clocks = [{run: node.last_access for run, node in each.runs().items()} for each in (book, other)]
    assert clocks[0] == clocks[1]
    book.tree.audit()


def test_tree2_a_known_answer_whose_node_is_gone_is_not_trusted() -> None:
    """TREE-2."""
    book = Book()
    book.insert([1, 2, 3])
    known = book.tree.match_length(pack_ids([1, 2, 3, 4]), 3)
    book.tree.evict(3)
    assert book.tree.match_length(pack_ids([1, 2, 3, 4]), 3, known=known) == (0, book.tree.root)


def test_tree3_the_upper_part_inherits() -> None:
    """TREE-3: hits, creation, urgency and step."""
    book = Book()
    _, lower = book.insert([1, 2, 3, 4], step=7, urgency=3)
    book.insert([1, 2, 3, 4], step=8, urgency=3)
    book.match([1, 2])
    upper = book.runs()[1, 2]
    assert upper.creation == lower.creation
    assert upper.serial != lower.serial
    assert (upper.hit_count, upper.urgency, upper.step) == (2, 3, 7)
    assert upper.parent is book.tree.root
    assert lower.parent is upper


def test_tree4_hits_count_requests_not_inserts_or_matches() -> None:
    """TREE-4: chunks of one request count once on each node."""
    book = Book()
    book.insert([1, 2])
    book.insert([1, 2, 3, 4], counted_from=2)
    book.insert([1, 2, 3, 4, 5], counted_from=4)
    book.match([1, 2, 3, 4, 5])
    assert [node.hit_count for _, node in sorted(book.runs().items())] == [1, 1, 1]
    book.insert([1, 2, 3])
    assert {run: node.hit_count for run, node in book.runs().items()} == {
        (1, 2): 2,
        (1, 2, 3): 2,
        (1, 2, 3, 4): 1,
        (1, 2, 3, 4, 5): 1,
    }


def test_tree4_present_pages_are_kept() -> None:
    """TREE-4: the caller frees its duplicates."""
    tree = RadixTree(1)
    tree.insert(pack_ids([1, 2]), [10, 11], 0)
    present, pages, _ = tree.insert(pack_ids([1, 2, 3]), [20, 21, 22], 0)
    assert (present, pages) == (2, [10, 11, 22])


def test_tree5_locks_nest_and_cannot_go_below_zero() -> None:
    """TREE-5."""
    book = Book()
    _, node = book.insert([1, 2])
    book.tree.lock(node)
    book.tree.lock(node)
    book.tree.unlock(node)
    assert (book.tree.evictable_tokens, book.tree.protected_tokens) == (0, 2)
    book.tree.unlock(node)
    assert book.tree.evictable_tokens == 2
    with pytest.raises(InvariantViolation, match="INV-6"):
        book.tree.unlock(node)


def test_tree8_nodes_of_a_failed_step_are_taken_out() -> None:
    """TREE-8: with everything below, and only those."""
    book = Book()
    book.insert([1, 2], step=1)
    book.insert([1, 2, 3, 4], step=2)
    book.insert([1, 2, 3, 4, 5], step=3)
    book.insert([8, 9], step=3)
    version = book.tree.version
    assert sorted(book.tree.remove_written_since(2)) == [5, 6, 11, 12, 13]
    assert list(book.runs()) == [(1, 2)]
    assert book.tree.version > version
    book.tree.audit()
    assert book.tree.evict(9) == [1, 2]


def test_version_follows_the_content() -> None:
    """`version` changes when pages come or go, and not for splits, locks or repeats."""
    book = Book()
    versions = [book.tree.version]
    for act in (
        lambda: book.insert([1, 2, 3, 4]),
        lambda: book.insert([1, 2, 3, 4]),
        lambda: book.match([1, 2]),
        lambda: book.tree.lock(book.node([1, 2])),
        lambda: book.tree.unlock(book.node([1, 2])),
        lambda: book.tree.evict(1),
        lambda: book.tree.clear(),
    ):
        act()
        versions.append(book.tree.version)
    changed = [after > before for before, after in itertools.pairwise(versions)]
    assert changed == [True, False, False, False, False, True, True]


def test_inv5_pages_and_key_must_agree() -> None:
    """INV-5."""
    with pytest.raises(InvariantViolation, match="INV-5"):
        RadixTree(2).insert(pack_ids([1, 2, 3]), [1], 0)


def test_clear_refuses_while_a_lock_is_held() -> None:
    """INV-6."""
    book = Book()
    _, node = book.insert([1, 2])
    book.tree.lock(node)
    with pytest.raises(InvariantViolation, match="INV-6"):
        book.tree.clear()
    book.tree.unlock(node)
    book.tree.clear()
    assert book.match([1, 2]) == 0
    book.tree.audit()
