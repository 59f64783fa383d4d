"""lpm and lpm-aging, and the rule about siblings in the queue: examples P1, P2, P3, P6, P9, P10 and POL-5, POL-6."""

from dataclasses import replace

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


@pytest.mark.parametrize(
    ("computed", "outputs", "expected"), [(99, 0, "hc"), (100, 0, "ch"), (0, 24, "hc"), (0, 25, "ch"), (60, 10, "ch")]
)
def test_p9_a_cold_request_goes_first_once_the_allowance_covers_it(computed: int, outputs: int, expected: str) -> None:
    """P9: lpm-aging, half of the work for the oldest; 50 tokens are not cached, an output counts for four."""
    line = Line("lpm-aging", aging_share=0.5)
    line.cache(list(range(100)))
    line.add("c", COLD)
    line.add("h", [*range(100), 1])
    assert line.order(processed_tokens=computed, output_tokens=outputs) == expected


def test_p10_the_oldest_go_first_as_far_as_the_allowance_reaches() -> None:
    """P10: 100 tokens cover a and b, which is the better match, and not d; c and x are siblings as in lpm."""
    line = Line("lpm-aging", aging_share=0.5)
    line.cache(list(range(64)))
    line.add("a", COLD)
    line.add("b", [*range(64), *range(700, 740)])
    line.add("d", list(range(200, 240)))
    line.add("x", [*range(300, 340), 1])
    line.add("c", [*range(300, 340), 2])
    line.add("h", [*range(64), 1])
    assert line.order(processed_tokens=200) == "abhdxc"


def test_4_2_the_allowance_is_spent_by_admission_alone() -> None:
    """4.2: what goes first and is not admitted stays first; once admitted, its tokens are used up."""
    line = Line("lpm-aging", aging_share=0.5)
    line.cache(list(range(100)))
    line.add("c", COLD)
    line.add("e", [number + 50 for number in COLD])
    for name in "hij":
        line.add(name, [*range(100), ord(name)])
    assert line.order(processed_tokens=198) == line.order() == "chije"
    assert line.admit() == "c"
    assert line.order(processed_tokens=200) == "hije"
    assert line.order(processed_tokens=300) == "ehij"


@pytest.mark.parametrize(("share", "arrivals"), [(0.5, 2), (0.08, 2), (0.08, 9), (0.02, 1)])
def test_p9_a_cold_request_is_overtaken_for_a_bounded_amount_of_work(share: float, arrivals: int) -> None:
    """P9, 4.2: U / share, with U the uncached tokens of all that waited when it came, however many hot ones arrive;
    and less than that share of the work is done for what goes first out of turn."""
    line = Line("lpm-aging", aging_share=share)
    line.cache(list(range(1000)))
    for name in "de":
        line.add(name, own_tokens(line.entries + 1, 200))
    line.add("c", own_tokens(line.entries + 1, 100))
    work = cold = 0
    taken = ""
    while taken != "c":
        for _ in range(arrivals):
            line.add(f"<{line.entries}>", [*range(1000), *own_tokens(line.entries, 8)])
        taken = line.admit()
        cost = line.by_name[taken].total_tokens - line.by_name[taken].matched_tokens
        cold += cost if taken in "dec" else 0
        work += cost
        line.context = replace(line.context, processed_tokens=work)
        assert cold <= share * work + 200
    assert work - cold <= (200 + 200 + 100) / share + 8


def test_4_2_the_oldest_of_the_most_urgent_go_first() -> None:
    """POL-6: the allowance is not spent on what stands behind more urgent requests in any case."""
    line = Line("lpm-aging", aging_share=1.0, enable_priority_scheduling=True)
    line.cache(list(range(100)))
    line.add("a", COLD, priority=0)
    line.add("b", [number + 50 for number in COLD], priority=5)
    line.add("h", [*range(100), 1], priority=5)
    assert line.order(processed_tokens=60) == "bha"


def test_4_2_the_oldest_is_the_first_to_have_arrived() -> None:
    """4.2: a was retracted, so that its entry is the last one."""
    line = Line("lpm-aging", aging_share=1.0)
    line.cache(list(range(100)))
    line.add("a", COLD)
    line.add("b", [number + 50 for number in COLD])
    line.add("h", [*range(100), 1])
    line.by_name["a"].qseq = 9
    assert line.order(processed_tokens=60) == "ahb"


def test_lpm_starves_where_aging_does_not() -> None:
    """The contrast: under lpm the cold one is overtaken for as long as hot ones arrive."""
    line = Line("lpm")
    line.cache(list(range(64)))
    line.add("c", COLD)
    for _ in range(20):
        line.add(f"<{line.entries}>", [*range(64), *own_tokens(line.entries)])
        assert line.admit() != "c"
