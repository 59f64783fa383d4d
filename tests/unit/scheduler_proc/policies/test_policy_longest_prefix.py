"""lpm and lpm-aging, and the rule about siblings in the queue: examples P1, P2, P3, P6, P9, P10 and POL-5, POL-6."""

import math

import pytest
from policy_rig import Line, own_tokens

COLD = list(range(900, 950))


def test_p1_longest_cached_prefix_first() -> None:
    """P1: the tree holds [0..99] and [0..39] + 60 others."""
    line = Line("lpm")
    line.cache(list(range(100)))
    line.cache([*range(40), *range(500, 560)])
    line.add("a")
    line.add("b", [*range(40), 1, 2, 3])
    line.add("c", [*range(100), 7])
    line.add("d")
    line.add("e", [*range(100), 8])
    assert line.order() == "cebad"
    assert [line.by_name[name].matched_tokens for name in "abcde"] == [0, 40, 100, 0, 100]


def test_p2_one_of_each_group_first() -> None:
    """P2: a and b share 40 tokens, c and d 31."""
    line = Line("lpm")
    line.add("a", [*range(40), 1])
    line.add("b", [*range(40), 2])
    line.add("c", [*range(100, 131), 1])
    line.add("d", [*range(100, 131), 2])
    line.add("e")
    assert line.order() == "acdeb"


@pytest.mark.parametrize(("shared", "is_put_off"), [(31, False), (32, True)])
def test_p3_tokens_shared_with_a_sibling(shared: int, is_put_off: bool) -> None:
    """P3, 4.3."""
    line = Line("lpm")
    line.add("a", [*range(shared), 901])
    line.add("b", [*range(shared), 902])
    line.order()
    assert line.by_name["b"].is_deprioritized is is_put_off
    assert not line.by_name["a"].is_deprioritized


@pytest.mark.parametrize(("cached", "is_checked"), [(32, True), (33, False)])
def test_p3_tokens_cached_already(cached: int, is_checked: bool) -> None:
    """P3, 4.3."""
    line = Line("lpm")
    line.cache(list(range(cached)))
    line.add("a", [*range(60), 901])
    line.add("b", [*range(60), 902])
    line.order()
    assert line.by_name["b"].is_deprioritized is is_checked


def test_siblings_must_be_of_one_namespace() -> None:
    """4.3, TREE-1."""
    line = Line("lpm")
    line.add("a", [*range(40), 1], tenant="t")
    line.add("b", [*range(40), 2], cache_salt="t")
    line.add("c", [*range(40), 3], tenant="t")
    assert line.order() == "abc"
    assert [line.by_name[name].is_deprioritized for name in "abc"] == [False, False, True]


def test_siblings_are_compared_with_their_outputs() -> None:
    """4.3: the full tokens count, also where the prompt alone is short."""
    line = Line("lpm")
    for name, last in (("a", 1), ("b", 2), ("c", 3)):
        request = line.add(name, list(range(20)))
        request.output_ids += [*range(50, 61 if name == "c" else 62), last]
    line.order()
    assert [line.by_name[name].is_deprioritized for name in "abc"] == [False, True, False]


def test_siblings_check_can_be_off_or_total() -> None:
    """4.3: check -1 disables; a deprioritize threshold of 0 puts off every request that is checked."""
    for config, put_off in (({"in_batch_check_threshold": -1}, ""), ({"in_batch_deprioritize_threshold": 0}, "ab")):
        line = Line("lpm", **config)
        line.add("a", [*range(40), 1])
        line.add("b", [*range(40), 2])
        line.order()
        assert line.names([request for request in line.waiting if request.is_deprioritized]) == put_off


def test_being_put_off_lasts_one_pass() -> None:
    """4.3: once the leader is cached, its siblings are hits."""
    line = Line("lpm")
    line.add("a", [*range(40), 1])
    line.add("b", [*range(40), 2])
    line.add("c")
    assert line.order() == "acb"
    line.cache([*range(40), 1])
    line.waiting.remove(line.by_name["a"])
    assert line.order() == "bc"
    assert not line.by_name["b"].is_deprioritized


def long_line(count: int, **config: object) -> Line:
    """`count` requests, the last one's prefix cached."""
    line = Line("lpm", **config)
    line.cache(list(range(40)))
    for number in range(count - 1):
        line.add(f"<{number}>")
    line.add("h", [*range(40), 1])
    return line


@pytest.mark.parametrize("overflow", ["first", "fcfs"])
def test_p6_a_queue_of_128_is_matched(overflow: str) -> None:
    """P6, POL-5."""
    assert long_line(128, prefix_match_overflow=overflow).order().startswith("h<0><1>")


@pytest.mark.parametrize("overflow", ["first", "fcfs"])
def test_p6_of_129_the_last_is_not_looked_at(overflow: str) -> None:
    """P6, POL-5: arrival order either way when the hot one is the 129th."""
    line = long_line(129, prefix_match_overflow=overflow)
    assert line.order() == "".join(f"<{number}>" for number in range(128)) + "h"


@pytest.mark.parametrize(("overflow", "is_first"), [("first", True), ("fcfs", False)])
def test_pol5_overflow_keeps_or_drops_the_order_of_the_first(overflow: str, is_first: bool) -> None:
    """POL-5: with 128 in front the hot one is among them, and one more arrives."""
    line = long_line(128, prefix_match_overflow=overflow)
    line.order()
    line.add("z", [*range(40), 2])
    order = line.order()
    assert order.startswith("h") is is_first
    assert order.endswith("z")
    assert (line.by_name["h"].matched_tokens == 40) is is_first
    assert line.by_name["z"].matched_tokens == 0


def test_pol5_limit_of_zero_is_arrival_order() -> None:
    """POL-5."""
    assert long_line(3, prefix_match_queue_max=0).order() == "<0><1>h"


def test_pol6_urgency_before_the_prefix() -> None:
    """POL-6: and the first to be looked at are the most urgent."""
    line = Line("lpm", enable_priority_scheduling=True, prefix_match_queue_max=2)
    line.cache(list(range(40)))
    line.add("a", [*range(40), 1], priority=0)
    line.add("b", priority=5)
    line.add("c", [*range(40), 2], priority=5)
    assert line.order() == "cba"
    assert [line.by_name[name].matched_tokens for name in "abc"] == [0, 0, 40]


@pytest.mark.parametrize(("match", "age", "expected"), [(100, 6, "hc"), (100, 7, "ch"), (80, 5, "ch"), (80, 4, "hc")])
def test_p9_a_cold_request_passes_a_hot_one(match: int, age: int, expected: str) -> None:
    """P9: lpm-aging, a 16."""
    line = Line("lpm-aging", aging_tokens_per_pass=16)
    line.cache(list(range(match)))
    line.add("c", passes_waited=age)
    line.add("h", [*range(match), 1])
    assert line.order() == expected


def line_of_p10(age_of_c: int) -> Line:
    line = Line("lpm-aging", aging_tokens_per_pass=20, in_batch_check_threshold=64, in_batch_deprioritize_threshold=40)
    line.cache(list(range(64)))
    line.cache([*range(200, 216)])
    line.cache([*range(300, 348)])
    line.add("b", passes_waited=3)
    line.add("d", [*range(200, 216), 1], passes_waited=2)
    line.add("c", [*range(300, 348), 1], passes_waited=age_of_c)
    line.add("a", [*range(64), 1])
    line.add("x", [*range(300, 348), 2], qseq=0, passes_waited=0)
    return line


def test_p10_aged_match_and_siblings() -> None:
    """P10: a(64, age 0), b(0, 3), c(48, 1, put off for x), d(16, 2); x itself has 48."""
    assert line_of_p10(1).order() == "abdxc"


def test_p10_being_put_off_ends_with_age() -> None:
    """4.2: age 16 or more is never put off, even below the first tier (a 3: 48 + 16*3 against 100)."""
    line = Line("lpm-aging", aging_tokens_per_pass=3)
    line.cache(list(range(100)))
    line.add("x", [*COLD, 1])
    line.add("c", [*COLD, 2], passes_waited=15)
    line.add("h", [*range(100), 1])
    assert line.order() == "hxc"
    line.by_name["c"].passes_waited = 16
    assert line.order() == "hcx"
    assert line.by_name["c"].is_deprioritized
    line.by_name["c"].passes_waited = 34
    assert line.order() == "chx"
    assert not line.by_name["c"].is_deprioritized


@pytest.mark.parametrize(("credit", "match"), [(16, 100), (64, 128), (7, 50)])
def test_p9_a_cold_request_is_overtaken_at_most_so_many_times(credit: int, match: int) -> None:
    """P9, 4.2: ceil(match / a) passes that admit one request, with two fresh hot arrivals before each."""
    line = Line("lpm-aging", aging_tokens_per_pass=credit)
    line.cache(list(range(match)))
    line.add("c", COLD)
    overtaken = 0
    while True:
        for _ in range(2):
            line.add(f"<{line.entries}>", [*range(match), *own_tokens(line.entries)])
        if line.admit() == "c":
            break
        overtaken += 1
    assert overtaken == math.ceil(match / credit)


def test_aging_counts_passes_that_admitted_a_request() -> None:
    """4.2: and the admitted ones do not age."""
    line = Line("lpm-aging")
    for name in "abc":
        line.add(name)
    line.order()
    line.policy.after_pass(line.waiting, 0, line.context)
    assert line.admit() == "a"
    assert line.admit() == "b"
    assert [line.by_name[name].passes_waited for name in "abc"] == [0, 1, 2]


def test_lpm_starves_where_aging_does_not() -> None:
    """The contrast: under lpm the cold one is overtaken for as long as hot ones arrive."""
    line = Line("lpm")
    line.cache(list(range(64)))
    line.add("c", COLD)
    for _ in range(20):
        line.add(f"<{line.entries}>", [*range(64), *own_tokens(line.entries)])
        assert line.admit() != "c"
