"""Groups of rows by their pages, against a search by hand."""

import numpy as np

from worker_proc.prefix_groups import MAX_GROUPS, PrefixGroupFinder

PAGE = 16


def finder(rows, row_tokens=0, step_tokens=0):
    """A finder over rows of page ids; slot n has row n."""
    table = np.zeros((len(rows) + 1, max(map(len, rows)) + 1), dtype=np.int32)
    for slot, row in enumerate(rows):
        table[slot, : len(row)] = row
    return PrefixGroupFinder(table, PAGE, row_tokens, step_tokens)


def found(rows, slots=None, **costs):
    """Each group as (pages, slots); checks what the groups say of their rows."""
    slots = np.array(range(len(rows)) if slots is None else slots, dtype=np.int64)
    contexts = np.array([len(rows[slot]) * PAGE + 1 for slot in slots])
    groups = finder(rows, **costs).find(slots, contexts)
    if groups is None:
        return None
    bounds = [0, *groups.ends.tolist()]
    result, prefixes = [], np.zeros(len(slots), dtype=np.int64)
    for at, length in enumerate(groups.lengths.tolist()):
        members = groups.members[bounds[at] : bounds[at + 1]]
        prefixes[members] = length
        own = slots[members].tolist()
        assert groups.slots[at] in own and len({tuple(rows[slot][: length // PAGE]) for slot in own}) == 1
        result.append((length // PAGE, sorted(own)))
    assert (prefixes == groups.prefixes).all() and len(groups.members) == bounds[-1]
    return sorted(result)


def test_rows_that_share_nothing_are_no_groups():
    assert found([[1, 2], [3, 4], [5]]) is None
    assert found([[1, 2]]) is None


def test_a_group_has_the_longest_prefix_of_all_its_rows():
    rows = [[*range(1, 12), 20 + row, 40 + row] for row in range(5)] + [[90, 91, 92]]
    assert found(rows) == [(11, [0, 1, 2, 3, 4])]
    assert found(rows, slots=[1, 3, 5]) == [(11, [1, 3])]
    # A page that is being written is not shared, and a context may end with the page before.
    assert found([[1, 2, 3], [1, 2, 3]]) == [(3, [0, 1])]


def test_several_groups_and_rows_of_none():
    rows = [[1, 2, 3, 4, 10], [5, 6, 11], [1, 2, 3, 4, 12], [7], [5, 6, 13], [5, 6, 14]]
    assert found(rows) == [(2, [1, 4, 5]), (4, [0, 2])]


def test_rows_take_the_level_of_a_tree_that_saves_most():
    """A system prompt of 2 pages below which two groups share 64 more, and one row nothing."""
    system, one, other = [1, 2], list(range(100, 164)), list(range(200, 264))
    rows = [[*system, *shared, 300 + at] for at, shared in enumerate((one, other, one, other, []))]
    assert found(rows) == [(66, [0, 2]), (66, [1, 3])]
    # Ten rows with the system prompt, two of which share a page more.
    rows = [[*range(1, 17), 50 + at // 2, 70 + at] for at in range(10)]
    assert found(rows) == [(16, list(range(10)))]


def test_a_short_row_does_not_shorten_the_prefix_of_the_others():
    rows = [[*range(1, 33), 40], [*range(1, 33), 41], [1, 2, 3], [*range(1, 33), 42]]
    assert found(rows) == [(32, [0, 1, 3])]


def test_groups_that_save_too_little_are_none():
    rows = [[1, 2, 3, 9], [1, 2, 3, 8]]
    assert found(rows, row_tokens=10, step_tokens=27) == [(3, [0, 1])]
    assert found(rows, row_tokens=10, step_tokens=28) is None
    # A group that costs more than it saves is left out beside one that pays.
    rows += [[*range(20, 40), 50 + at] for at in range(2)]
    assert found(rows, row_tokens=24) == [(20, [2, 3])]


def test_the_groups_that_save_most_are_kept():
    rows = [[*range(100 * group + 1, 100 * group + 2 + group % 7), 9000 + 2 * group + at]
            for group in range(MAX_GROUPS + 5) for at in range(2)]  # fmt: skip
    kept = found(rows)
    assert len(kept) == MAX_GROUPS and sum(pages == 1 for pages, _ in kept) == 10 - 5


def test_groups_are_kept_while_the_same_rows_decode():
    rows = [[1, 2, 3, 9], [1, 2, 3, 8]]
    groups, slots, contexts = finder(rows), np.array([0, 1]), np.array([65, 65])
    first = groups.find(slots, contexts)
    assert groups.find(slots, contexts + 5) is first
    assert groups.find(slots.copy(), contexts) is not first


def test_random_trees_give_true_groups_that_save_at_least_half_of_the_best_single_level():
    draw = np.random.default_rng(3)
    for _ in range(60):
        rows, fresh = [], 1
        for _ in range(int(draw.integers(2, 24))):
            parent = rows[int(draw.integers(len(rows)))] if rows and draw.random() < 0.8 else []
            kept = parent[: int(draw.integers(len(parent) + 1))]
            own = list(range(fresh, fresh + int(draw.integers(1, 20))))
            fresh += len(own)
            rows.append([*kept, *own])
        groups = found(rows) or []
        saved = sum(pages * (len(slots) - 1) for pages, slots in groups)
        best = 0
        for depth in range(1, max(map(len, rows)) + 1):
            at = [row[depth - 1] for row in rows if len(row) >= depth]
            best = max(best, depth * (len(at) - len(set(at))))
        assert 2 * saved >= best
