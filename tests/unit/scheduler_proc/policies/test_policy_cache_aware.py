"""hrrn, shortest-prefill-first, dfs-weight in both senses, multi: examples P4, P8, P11 and rule 4.8."""

import pytest
from policy_rig import Line

from scheduler_proc.core.policies import reserve_for_short

CACHE_AWARE = (
    "lpm", "lpm-aging", "hrrn", "dfs-weight", "dfs-weight-tutorial", "shortest-prefill-first", "multi:lpm,fcfs"
)  # fmt: skip


@pytest.mark.parametrize("policy", CACHE_AWARE)
def test_pol3_without_a_tree_it_is_arrival_order(policy: str) -> None:
    """POL-3."""
    line = Line(policy, has_tree=False)
    line.add("a", list(range(50)), max_new_tokens=1)
    line.add("b", list(range(40)), max_new_tokens=9)
    assert line.order() == "ab"


@pytest.mark.parametrize("policy", CACHE_AWARE)
def test_pol2_falling_back_is_arrival_order_not_the_last_pass(policy: str) -> None:
    """POL-2, POL-5: what an earlier pass has found out is forgotten too."""
    line = Line(policy)
    line.cache(list(range(40)))
    line.add("a", list(range(500, 550)))
    line.add("b", [*range(40), 1])
    line.order()
    assert line.by_name["b"].matched_tokens == 40
    assert line.order(tree=None) == "ab"
    assert line.by_name["b"].matched_tokens == 0


def test_p4_dfs_weight_emits_popular_subtrees_leaves_first() -> None:
    """P4: root-A-{B,C}, root-D; requests 1:D 2:A 3:B 4:C 5:C 6:root 7:D."""
    assert line_of_p4("dfs-weight").order() == "4532176"
    assert line_of_p4("dfs-weight-tutorial").order() == "3451276"


def line_of_p4(policy: str, **config: object) -> Line:
    line = Line(policy, **config)
    paths = {"A": [1, 2], "B": [1, 2, 3], "C": [1, 2, 4], "D": [9, 8], "root": [77]}
    for node in "BCD":
        line.cache(paths[node])
    for name, node in zip("1234567", ("D", "A", "B", "C", "C", "root", "D"), strict=True):
        line.add(name, [*paths[node], 50 + int(name)])
    return line


def test_p4_dfs_weight_ties_keep_the_order_of_insertion() -> None:
    """4.4: also after a split has put a node above an older one, and with priorities on top."""
    line = Line("dfs-weight")
    for path in ([5, 5, 5], [3, 3, 3], [4, 4, 4]):
        line.cache(path)
    line.match([5, 5])
    for name, path in (("a", [4, 4, 4]), ("b", [3, 3, 3]), ("c", [5, 5, 5])):
        line.add(name, [*path, 1])
    assert line.order() == "cba"


def test_p4_dfs_weight_with_priority() -> None:
    """POL-6."""
    line = line_of_p4("dfs-weight", enable_priority_scheduling=True)
    line.by_name["6"].urgency = -1
    line.by_name["3"].urgency = 1
    assert line.order() == "6452173"


def test_dfs_weight_survives_a_deep_tree() -> None:
    """4.4: iterative; 1,100 nodes on one path."""
    line = Line("dfs-weight")
    ids = list(range(1100))
    for end in range(1, 1101):
        line.cache(ids[:end])
    line.add("a")
    line.add("b", [*ids, 1])
    line.add("c", [*ids[:550], 1])
    assert line.order() == "bca"


def test_dfs_weight_does_not_look_at_branches_without_requests() -> None:
    """The speed bar: the cost does not depend on how much is cached."""

    class Counted(dict):  # type: ignore[type-arg]
        def __iter__(self) -> object:  # type: ignore[override]
            raise AssertionError("all children of the root are visited")

        values = items = keys = __iter__

    line = line_of_p4("dfs-weight")
    line.tree.root.children = Counted(line.tree.root.children)
    assert line.order() == "4532176"


def test_dfs_tutorial_weighs_depth_by_the_request() -> None:
    """4.4: score = depth * weight, ties by arrival."""
    line = line_of_p4("dfs-weight-tutorial")
    line.by_name["7"].weight = 2.5
    line.by_name["2"].weight = 2.0
    assert line.order() == "7234516"


def test_dfs_weight_ignores_siblings() -> None:
    """4.2: rule 4.3 is not for dfs-weight."""
    line = Line("dfs-weight")
    line.add("a", [*range(40), 1])
    line.add("b", [*range(40), 2])
    line.add("c")
    assert line.order() == "abc"
    assert not line.by_name["b"].is_deprioritized


@pytest.mark.parametrize(("policy", "is_whole"), [("dfs-weight", True), ("hrrn", False), ("lpm-aging", False)])
def test_pol5_dfs_weight_does_not_fall_back(policy: str, is_whole: bool) -> None:
    """POL-5: with overflow fcfs it matches the whole queue, lpm and hrrn none of it."""
    line = Line(policy, prefix_match_queue_max=2, prefix_match_overflow="fcfs")
    line.cache(list(range(40)))
    for name in "ab":
        line.add(name)
    line.add("c", [*range(40), 1])
    assert line.order() == ("cab" if is_whole else "abc")


def test_p8_highest_response_ratio() -> None:
    """P8: processed 10000; (uncached, snapshot) of r1 to r5, r5 put off for a sibling."""
    line = Line("hrrn", in_batch_check_threshold=1500)
    line.cache(list(range(1100)))
    entries = {"1": (400, 2000), "2": (20, 9000), "4": (1000, 0), "5": (10, 0)}
    for name, (uncached, snapshot) in entries.items():
        shared = 1100 if name == "5" else 0
        line.add(name, [*range(shared), *range(5000 + int(name) * 1000, 5000 + int(name) * 1000 + uncached)])
        line.by_name[name].processed_at_entry = snapshot
    # The last token is never taken from the cache, so only a retracted request's prompt can be cached whole.
    request = line.add("3", list(range(1000)), processed_at_entry=9500, qseq=0)
    request.output_ids.append(1000)
    assert line.order(processed_tokens=10_000) == "32145"
    assert line.by_name["5"].is_deprioritized


def test_hrrn_ties_are_by_arrival() -> None:
    """4.2."""
    line = Line("hrrn")
    for name in "abc":
        line.add(name, processed_at_entry=10)
    line.by_name["a"].qseq = 99
    assert line.order(processed_tokens=100) == "bca"


@pytest.mark.parametrize(
    ("levels", "high_first", "low_first"),
    [
        ("priority,lpm,fcfs", "cebad", "adceb"),
        ("lpm,priority", "ceadb", "adceb"),
        ("priority,lof,lpm", "bceda", "dabce"),
    ],
)
def test_p11_levels(levels: str, high_first: str, low_first: str) -> None:
    """P11, PRI-3."""
    for is_low_first, expected in ((False, high_first), (True, low_first)):
        line = line_of_p11(levels, enable_priority_scheduling=True, schedule_low_priority_values_first=is_low_first)
        assert line.order() == expected


def line_of_p11(levels: str, **config: object) -> Line:
    line = Line(f"multi:{levels}", **config)
    line.cache(list(range(64)))
    for name, priority, matched, max_new_tokens in (
        ("a", 1, 64, 10),
        ("b", 5, 0, 500),
        ("c", 5, 64, 20),
        ("d", 1, 64, 300),
        ("e", 5, 64, 20),
    ):
        line.add(name, [*range(matched), 900 + ord(name)], priority, max_new_tokens=max_new_tokens)
    return line


def test_p11_beyond_the_limit_the_prefix_counts_among_the_first_by_the_levels_before_it() -> None:
    """PRI-3, POL-5: the rest follow, their prefix counts for nothing."""
    line = line_of_p11("lpm,lof", prefix_match_queue_max=3)
    assert line.order() == "cabde"
    assert [line.by_name[name].matched_tokens for name in "acde"] == [64, 64, 0, 0]
    line = line_of_p11("priority,lpm,fcfs", enable_priority_scheduling=True, prefix_match_queue_max=3)
    assert line.order() == "cebad"
    line = line_of_p11("lpm,lof", prefix_match_queue_max=4, prefix_match_overflow="fcfs")
    assert line.order() == "bdcea"


def test_p11_the_final_tie_is_seq() -> None:
    """PRI-3: a requeued request keeps its seq, though it entered the queue last."""
    line = Line("multi:priority")
    for name in "abc":
        line.add(name)
    line.by_name["a"].qseq = 9
    assert line.order() == "abc"


def test_shortest_prefill_counts_what_is_not_cached() -> None:
    """4.2: (deprioritized, max(1, L - matched), qseq)."""
    line = Line("shortest-prefill-first")
    line.cache(list(range(100)))
    line.add("a", list(range(500, 540)))
    line.add("b", [*range(100), *range(600, 605)])
    line.add("c", list(range(700, 705)))
    line.add("d", [*range(500, 540), 1])
    retracted = line.add("e", list(range(800, 803)))
    retracted.output_ids += [1, 2, 3]
    assert line.order() == "bcead"


def test_shortest_prefill_puts_siblings_off() -> None:
    """4.2, 4.3: b is the shortest, and finds 40 of its tokens cached after a."""
    line = Line("shortest-prefill-first")
    line.add("a", [*range(40), *range(700, 720)])
    line.add("b", [*range(40), 1, 2])
    line.add("c", list(range(800, 850)))
    assert line.order() == "cab"


def test_hrrn_counts_the_work_since_the_entry() -> None:
    """4.2: a has waited for 1,000 tokens with 100 to compute, b for 100 with 20."""
    line = Line("hrrn")
    line.add("b", list(range(20)), processed_at_entry=900)
    line.add("a", list(range(500, 600)))
    assert line.order(processed_tokens=1000) == "ab"


def test_hrrn_counts_no_outputs() -> None:
    """4.2: 10 tokens of prompt and 90 of output are 10."""
    line = Line("hrrn")
    line.add("b", list(range(50)))
    retracted = line.add("a", list(range(500, 510)))
    retracted.output_ids += range(90)
    assert line.order(processed_tokens=100) == "ab"


@pytest.mark.parametrize(
    ("chunk_remaining", "rem_chunk", "expected"),
    [
        (100, 64, 32),  # 5 -> 16, 10 -> 32; 17 -> 64 is more than 64 - 16
        (100, 96, 64),  # all three
        (100, 79, 32),  # 64 > 79 - 16
        (100, 80, 64),
        (17, 96, 32),  # the third is not shorter than the rest
        (5, 96, 0),
        (100, 32, 16),
        (100, 31, 0),  # less than two pages
    ],
)
def test_reservation_for_short_prefills(chunk_remaining: int, rem_chunk: int, expected: int) -> None:
    """4.8: P 16; works of 5, 10 and 17 tokens."""
    line = Line("shortest-prefill-first")
    for number, work in enumerate((17, 5, 10)):
        line.add("abc"[number], list(range(number * 100, number * 100 + work)))
    assert line.order() == "bca"
    assert reserve_for_short(line.waiting, chunk_remaining, rem_chunk, 16) == expected


def test_reservation_stops_at_the_first_that_does_not_fit() -> None:
    """4.8: no skip-ahead; a work of 0 counts as 1."""
    line = Line("shortest-prefill-first")
    for name, work in zip("abcd", (4, 4, 40, 4), strict=True):
        line.add(name, list(range(ord(name) * 100, ord(name) * 100 + work)))
    line.by_name["a"].matched_tokens = 4
    queue = [line.by_name[name] for name in "abcd"]
    assert reserve_for_short(queue, 1000, 4, 1) == 1
    assert reserve_for_short(queue, 1000, 20, 1) == 5
