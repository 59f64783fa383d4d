"""Groups of decode rows that share a prefix, found by their pages, so that attention reads it once for all of them.

Two rows have the same page at an index only if the radix tree gave it to both, and then all their tokens before it are
the same. What a row's pages hold below its context never changes, so groups stay true while the same rows decode, even
if copies among their pages are replaced. Numpy only; used by the decode graph runner.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker_proc.slots import IntArray

MAX_GROUPS = 64
"""Groups that a step can have, a power of two."""


@dataclass(frozen=True, slots=True)
class PrefixGroups:
    """Groups of the M rows of a step. `prefixes` [M]: tokens that a row shares with its group, whole pages, 0 without a
    group. `members`: rows, group by group; by group, its end among the members, `ends`, and its tokens, `lengths`.
    `slots`: a slot of each group."""

    prefixes: IntArray
    members: IntArray
    ends: IntArray
    lengths: IntArray
    slots: IntArray


class PrefixGroupFinder:
    """Finds the groups of the rows that decode, and keeps them while the same rows do.

    Args:
        page_table: the host's, [slots + 1, pages] int32.
        page_size: tokens per page.
        row_tokens: what a row costs that is in a group, in tokens read.
        step_tokens: what a step costs that has groups.
    """

    def __init__(self, page_table: NDArray[np.int32], page_size: int, row_tokens: int, step_tokens: int) -> None:
        self._page_table = page_table
        self._page_size = page_size
        self._row_tokens, self._step_tokens = row_tokens, step_tokens
        self._rows: IntArray | None = None
        self._groups: PrefixGroups | None = None

    def find(self, slots: IntArray, contexts: IntArray) -> PrefixGroups | None:
        """Return the groups of the rows in these slots, ascending; None where groups do not pay.

        `slots` is the same array, and not only equal, while the same sequences decode. `contexts` include the token
        being computed."""
        if slots is not self._rows:
            self._rows, self._groups = slots, self._search(slots, (contexts - 1) // self._page_size)
        return self._groups

    def _search(self, slots: IntArray, pages: IntArray) -> PrefixGroups | None:
        """Each row takes the level, of 1, 2, 4 and so on pages, at which its share of what is saved is largest."""
        if len(slots) < 2:
            return None
        table, at = self._page_table, 1
        level, share = np.zeros(len(slots), dtype=np.int64), np.zeros(len(slots))
        key = -1 - np.arange(len(slots))
        while at <= pages.max():
            ids = np.where(pages >= at, table[slots, at - 1], -1 - np.arange(len(slots)))
            _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
            count = counts[inverse]
            if count.max() < 2:
                break
            saved = at * (count - 1) / count
            better = saved > share
            level[better], share[better], key[better] = at, saved[better], ids[better]
            at *= 2
        if not share.any():
            return None
        return self._grouped(slots, pages, level, key)

    def _grouped(self, slots: IntArray, pages: IntArray, level: IntArray, key: IntArray) -> PrefixGroups | None:
        """Return the rows of equal keys as groups, with the longest prefix that each of them shares."""
        members = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[members], prepend=key[members[0]] - 1))
        counts = np.diff(starts, append=len(members))
        shared = self._shared_pages(slots, pages, level, members, starts, counts)
        saved = shared * (counts - 1) * self._page_size - counts * self._row_tokens
        best = np.argsort(-saved, kind="stable")[:MAX_GROUPS]
        best = np.sort(best[saved[best] > 0])
        if saved[best].sum() <= self._step_tokens:
            return None
        is_kept = np.zeros(len(starts), dtype=bool)
        is_kept[best] = True
        members = members[np.repeat(is_kept, counts)]
        lengths, ends = shared[best] * self._page_size, counts[best].cumsum()
        prefixes = np.zeros(len(slots), dtype=np.int64)
        prefixes[members] = np.repeat(lengths, counts[best])
        return PrefixGroups(prefixes, members, ends, lengths, slots[members[ends - 1]])

    def _shared_pages(
        self, slots: IntArray, pages: IntArray, level: IntArray, members: IntArray, starts: IntArray, counts: IntArray
    ) -> IntArray:
        """Return the pages that all rows of each run of `members` share, at least as many as their level."""
        least = level[members[starts]]
        most = np.minimum(np.minimum.reduceat(pages[members], starts), 2 * least - 1)
        own, first = slots[members], slots[members[starts]]
        while (least < most).any():
            middle = (least + most + 1) // 2
            index = np.maximum(middle - 1, 0)
            is_same = self._page_table[own, np.repeat(index, counts)] == np.repeat(
                self._page_table[first, index], counts
            )
            is_same = np.logical_and.reduceat(is_same, starts)
            least, most = np.where(is_same, middle, least), np.where(is_same, most, middle - 1)
        return least
