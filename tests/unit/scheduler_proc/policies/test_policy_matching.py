"""What a pass looks up and what it remembers (POL-3): a remembered answer must be the one a fresh look would give."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_rig import Line, own_tokens

from quartet.wire.frames import pack_ids
from scheduler_proc.core.policies.matching import PrefixMatcher, deprioritize_siblings
from scheduler_proc.core.radix import Node, RadixTree


class CountingTree(RadixTree):
    """Counts look-ups that read a key."""

    looked_up = 0

    def match_length(self, *args: Any, **named: Any) -> tuple[int, Node]:
        self.looked_up += 1
        return super().match_length(*args, **named)


def counted_line(policy: str = "lpm") -> tuple[Line, CountingTree]:
    line = Line(policy)
    line.tree = tree = CountingTree(1)
    line.order(tree=tree)
    return line, tree


def test_pol3_at_least_the_last_token_is_computed() -> None:
    """POL-3: the result is at most L-1, here with the whole prompt cached."""
    for page_size, expected in ((1, 7), (4, 4)):
        line = Line("lpm", page_size=page_size)
        line.cache(list(range(8)))
        request = line.add("a", list(range(8)))
        line.order()
        assert request.matched_tokens == expected
        assert request.matched_node is not None
        assert len(request.matched_node.key) == expected * 4


def test_pol3_outputs_are_matched_too() -> None:
    """POL-3: a retracted request finds what it has computed."""
    line = Line("lpm")
    line.cache([1, 2, 3, 4, 5])
    request = line.add("a", [1, 2, 3])
    request.output_ids += [4, 5, 6]
    line.order()
    assert request.matched_tokens == 5


def test_pol3_nothing_is_compared_again_while_nothing_changes() -> None:
    """POL-3: neither after a split, which changes no answer."""
    line, tree = counted_line()
    line.cache(list(range(10)))
    line.add("a", [*range(10), 1])
    line.add("b", [*range(5), 1])
    for _ in range(3):
        line.order()
    assert tree.looked_up == 2
    line.match([0, 1])
    line.order()
    assert tree.looked_up == 2
    assert [line.by_name[name].matched_tokens for name in "ab"] == [10, 5]


def test_pol3_a_remembered_answer_refreshes_as_a_match_does() -> None:
    """POL-3: access times follow the last pass, in the order of the queue."""
    line, tree = counted_line()
    for number, name in enumerate("abc"):
        line.cache(own_tokens(number))
        line.add(name, [*own_tokens(number), 1])
    line.order()
    line.match(own_tokens(0))
    line.order()
    assert tree.looked_up == 3
    nodes = [line.by_name[name].matched_node for name in "abc"]
    ages = [node.last_access for node in nodes if node is not None]
    assert ages == sorted(ages)
    assert tree.evict(1) == [1, 1, 1]
    assert nodes[0] is not None
    assert nodes[0].parent is None


@pytest.mark.parametrize("change", ["insert", "evict", "output", "clear", "new tree", "requeue"])
def test_pol3_changes_are_seen(change: str) -> None:
    """POL-3."""
    line = Line("lpm")
    line.cache([1, 2])
    request = line.add("a", [1, 2, 3, 4])
    line.order()
    assert request.matched_tokens == 2
    expected = 2
    match change:
        case "insert":
            line.cache([1, 2, 3, 4])
            expected = 3
        case "evict":
            line.tree.evict(2)
            expected = 0
        case "output":
            line.cache([1, 2, 3, 4])
            line.order()
            request.output_ids.append(5)
            expected = 4
        case "clear":
            line.tree.clear()
            expected = 0
        case "new tree":
            line.tree = RadixTree(1)
            line.cache([1])
            assert line.tree.version <= 1
            expected = 1
        case "requeue":
            request.qseq = 50
    line.order(tree=line.tree)
    assert request.matched_tokens == expected


def test_memory_is_of_the_last_pass_only() -> None:
    """What left the queue is forgotten."""
    matcher = PrefixMatcher()
    line = Line("lpm")
    requests = [line.add(name) for name in "abc"]
    matcher.match(requests, line.tree)
    matcher.match(requests[1:], line.tree)
    assert sorted(matcher._known) == [2, 3]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pol3_remembering_changes_nothing(data: st.DataObject) -> None:
    """POL-3: two trees with the same history, one matched with memory and one without, stay the same."""
    ids = st.lists(st.integers(0, 1), min_size=1, max_size=8)
    line, plain = Line("lpm"), RadixTree(1)
    requests = [line.add(str(number), prompt) for number, prompt in enumerate(data.draw(st.lists(ids, max_size=4)))]
    matcher = PrefixMatcher()
    for act in data.draw(st.lists(st.sampled_from(["insert", "evict", "pass", "output"]), max_size=12)):
        if act == "insert":
            key = data.draw(ids)
            for tree in (line.tree, plain):
                tree.insert(pack_ids(key), [7] * len(key), 0, ("", ""))
        elif act == "evict":
            assert line.tree.evict(2) == plain.evict(2)
        elif act == "output" and requests:
            data.draw(st.sampled_from(requests)).output_ids.append(data.draw(st.integers(0, 1)))
        matcher.match(requests, line.tree)
        for request in requests:
            tokens, _ = plain.match_length(request.key(), request.total_tokens - 1, request.namespace)
            assert request.matched_tokens == tokens
        assert books(line.tree) == books(plain)
        line.tree.audit()


def books(tree: RadixTree) -> list[tuple[bytes, int, int]]:
    return sorted((node.key, node.last_access, node.serial) for node in tree.nodes())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), max_size=8), st.integers(0, 4))
def test_siblings_are_those_that_a_scratch_tree_finds(prompts: list[list[int]], threshold: int) -> None:
    """4.3: the rule as it is written, with a tree of page size 1 for the pass."""
    line = Line("lpm", in_batch_deprioritize_threshold=threshold)
    requests = [line.add(str(number), prompt) for number, prompt in enumerate(prompts)]
    scratch = RadixTree(1)
    expected = []
    for request in requests:
        shared, _ = scratch.match_length(request.key(), request.total_tokens, request.namespace)
        expected.append(shared >= threshold)
        if shared < threshold:
            scratch.insert(request.key(), [0] * request.total_tokens, 0, request.namespace)
    deprioritize_siblings(requests, line.config)
    assert [request.is_deprioritized for request in requests] == expected
