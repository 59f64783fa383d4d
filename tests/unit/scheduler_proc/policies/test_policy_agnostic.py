"""Policies that do not look at the cache: fcfs, lof, random, routing-key; and POL-2, POL-4, POL-6."""

import collections

import pytest
from policy_rig import Line, own_tokens

from quartet.wire.errors import ConfigError
from scheduler_proc.core.policies import make_policy


def line_of_p5(policy: str, **config: object) -> Line:
    line = Line(policy, **config)
    for name, max_new_tokens, priority in (("a", 10, 1), ("b", 500, 0), ("c", 500, 1), ("d", 20, 5)):
        line.add(name, max_new_tokens=max_new_tokens, priority=priority)
    return line


@pytest.mark.parametrize(
    ("policy", "config", "expected"),
    [
        ("lof", {}, "bcda"),
        ("lof", {"enable_priority_scheduling": True}, "dcab"),
        ("lof", {"enable_priority_scheduling": True, "schedule_low_priority_values_first": True}, "bcad"),
        ("fcfs", {"enable_priority_scheduling": True}, "dacb"),
        ("fcfs", {"enable_priority_scheduling": True, "schedule_low_priority_values_first": True}, "bacd"),
        ("fcfs", {}, "abcd"),
    ],
)
def test_p5_longest_output_and_priority(policy: str, config: dict[str, bool], expected: str) -> None:
    """P5, POL-6, PRI-2."""
    assert line_of_p5(policy, **config).order() == expected


def test_pol1_the_list_is_sorted_in_place() -> None:
    """POL-1."""
    line = line_of_p5("lof")
    same = line.waiting
    line.order()
    assert line.waiting is same


def test_pol2_arrival_decides_whatever_order_the_list_is_in() -> None:
    """POL-2: by queue entry, so a requeued request is behind though it has the older seq."""
    line = Line("fcfs")
    for name in "abc":
        line.add(name)
    line.by_name["a"].qseq = 9
    line.waiting.reverse()
    assert line.order() == "bca"


def test_pol6_urgency_needs_priority_scheduling() -> None:
    """POL-6: a stray urgency is not obeyed when priorities are off."""
    line = Line("fcfs")
    line.add("a")
    line.add("b", urgency=-5)
    assert line.order() == "ab"


@pytest.mark.parametrize("name", ["priority", "multi:", "multi:lpm,age", "lifo"])
def test_pol6_unknown_policies_are_refused(name: str) -> None:
    """POL-6, CFG-1."""
    with pytest.raises(ConfigError, match="schedule_policy"):
        make_policy(Line("fcfs").config.__class__(schedule_policy=name))


def test_p7_routing_keys_that_run_go_first() -> None:
    """P7."""
    line = Line("routing-key")
    for name, key in zip("abcde", ("k1", "k2", "", "k3", "k2"), strict=True):
        line.add(name, routing_key=key)
    others = Line("fcfs")
    running = [others.add(str(i), routing_key=key) for i, key in enumerate(("k2", "k3", "k2", ""))]
    assert line.order(running=running) == "bedca"


def test_p7_without_keys_running_the_order_is_left_alone() -> None:
    """P7: a running request without a key counts for nothing."""
    line = Line("routing-key")
    for name, key in zip("abc", ("k3", "k1", ""), strict=True):
        line.add(name, routing_key=key)
    assert line.order(running=[Line("fcfs").add("x")]) == "abc"


def test_random_is_a_function_of_seed_and_pass() -> None:
    """4.2: and not of the order that the last pass left."""
    orders = []
    for seed in (0, 0, 1, -1):
        line = Line("random", random_seed=seed)
        for name in "abcdefgh":
            line.add(name)
        orders.append([line.order(pass_number=number) for number in (1, 2, 3, 1)])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert order[0] == order[3]
        assert len(set(order)) == 3
        assert all(sorted(each) == list("abcdefgh") for each in order)


def test_random_is_uniform() -> None:
    """4.2: all orders of three about equally often over 1,200 passes (expected 200, standard deviation 13)."""
    line = Line("random")
    for name in "abc":
        line.add(name)
    counts = collections.Counter(line.order() for _ in range(1200))
    assert len(counts) == 6
    assert all(140 < count < 260 for count in counts.values())


def test_random_obeys_priority() -> None:
    """POL-6."""
    line = Line("random", enable_priority_scheduling=True)
    for name, priority in zip("abcdef", (1, 2, 1, 2, 1, 2), strict=True):
        line.add(name, priority=priority)
    orders = {line.order() for _ in range(30)}
    assert len(orders) > 5
    assert all(set(order[:3]) == set("bdf") for order in orders)


def test_pol4_waiting_prefixes_are_refreshed_from_the_tail() -> None:
    """POL-4: the head's prefix is then the last to go; nothing happens in other passes."""
    line = Line("fcfs")
    for number, name in enumerate("abc"):
        line.add(name, [*own_tokens(number), 1])
        line.cache(own_tokens(number))
    ends = [line.match(own_tokens(number)) for number in range(3)]
    line.order(pass_number=31)
    assert [end.last_access for end in ends] == sorted(end.last_access for end in ends)
    line.cache([7, 7])
    line.order(pass_number=32)
    assert [line.tree.evict(1) for _ in range(4)] == [[1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert [end.last_access for end in ends] == sorted((end.last_access for end in ends), reverse=True)


@pytest.mark.parametrize(
    ("policy", "config", "refreshes"),
    [
        ("lof", {}, True),
        ("multi:priority,fcfs", {}, True),
        ("fcfs", {"radix_eviction_policy": "lfu"}, False),
    ],
)
def test_pol4_only_lru_and_only_the_first_128(policy: str, config: dict[str, str], refreshes: bool) -> None:
    """POL-4."""
    line = Line(policy, **config)
    for number in range(129):
        line.add(f"<{number}>", [*own_tokens(number), 1], max_new_tokens=8)
        line.cache(own_tokens(number))
    before = {id(node): node.last_access for node in line.tree.nodes()}
    line.order(pass_number=64)
    touched = sum(node.last_access != before[id(node)] for node in line.tree.nodes())
    assert touched == (128 if refreshes else 0)


def test_lof_orders_by_what_was_granted() -> None:
    """4.2: M after the clamp of LEN-2, not what the client asked for."""
    line = Line("lof")
    line.add("a", max_new_tokens=100)
    line.add("b", max_new_tokens=10)
    line.by_name["a"].max_new_tokens = 3
    assert line.order() == "ba"
