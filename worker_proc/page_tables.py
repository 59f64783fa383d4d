"""The page tables: which page holds which tokens of a slot, in each page group; the host's copy.

Group 0 has a page for every token of a sequence. The others are of layers that see a window of tokens: there, entry 0,
the dummy page, stands where no row reads any more. Row `max_slots` of each table is the dummy row, all of whose entries
are 0. Numpy only, never torch.
"""

import numpy as np
from numpy.typing import NDArray

from quartet.wire.frames import Enter, Step
from worker_proc.contract import Capacity, StepError

IntArray = NDArray[np.int64]
_WIRE = np.dtype("<i4")
NO_WRITES: IntArray = np.empty((0, 3), dtype=np.int64)
NO_PAGES: IntArray = np.empty(0, dtype=np.int64)


def ids_of(data: bytes) -> IntArray:
    """Return little-endian int32 bytes as int64; raises StepError for a partial element."""
    if len(data) % 4:
        raise StepError(f"an id array of {len(data)} bytes")
    return np.frombuffer(data, _WIRE).astype(np.int64)


class PageTables:
    """The table of each page group: `tables` [groups, max_slots + 1, max_pages] int32.

    A write is (row, index, page), where `row` counts through the tables of all groups: group * (max_slots + 1) + slot.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.rows = capacity.max_slots + 1
        # One page beyond the context: the surplus row of a sequence that has just ended may still write to it.
        self.max_pages = -(-(capacity.context_length + 1) // capacity.page_size)
        self._counts = capacity.page_counts
        self.tables = np.zeros((len(self._counts), self.rows, self.max_pages), dtype=np.int32)
        self._indices = np.arange(self.max_pages)
        self._least_write = np.array((0, 0, 1), dtype=np.int64)
        self._writes_extent = np.array((capacity.max_slots, self.max_pages, capacity.page_count), dtype=np.uint64)
        self._window_counts = np.array(self._counts[1:], dtype=np.int64)

    def clear(self) -> None:
        """Forget every entry."""
        self.tables[:] = 0

    def free(self, slot: int) -> None:
        """Forget the entries of a slot."""
        self.tables[:, slot] = 0

    def at(self, slots: IntArray, positions: IntArray, group: int = 0) -> NDArray[np.int32]:
        """Return the page that holds each position; raises StepError if a position has none."""
        try:
            pages: NDArray[np.int32] = self.tables[group, slots, positions // self._capacity.page_size]
        except IndexError:
            raise StepError(f"position {positions.max()} lies beyond the context") from None
        if not pages.all():
            at = int(np.flatnonzero(pages == 0)[0])
            raise StepError(f"slot {slots[at]} has no page for position {positions[at]}")
        return pages

    def check(self, slot: int, start: int, end: int) -> None:
        """Raise StepError unless every position from `start` up to `end` has a page in each group."""
        size = self._capacity.page_size
        pages = self.tables[:, slot, start // size : -(-end // size)]
        if -(-end // size) > self.max_pages or not pages.all():
            raise StepError(f"slot {slot} lacks a page for a position in {start}..{end}")

    def grant(self, slot: int, frame: Enter) -> tuple[IntArray, list[IntArray]]:
        """Write the pages with which a sequence enters a slot, which has been checked; return the writes, and of each
        group the pages that hold nothing yet."""
        pages, cached = ids_of(frame.pages), -(-frame.cached_length // self._capacity.page_size)
        self._check_granted(pages, 1, 0)
        self.tables[0, slot, : len(pages)] = pages
        writes, fresh = [self._triples(slot, pages)], [pages[cached:]]
        if len(frame.window_pages) != len(self._window_counts):
            raise StepError(f"pages of {len(frame.window_pages)} windows where there are {len(self._window_counts)}")
        for group, column in enumerate(frame.window_pages, 1):
            own = ids_of(column)
            self._check_granted(own, 0, group)
            if len(own) != len(pages):
                raise StepError(f"{len(own)} pages of a window beside {len(pages)} of group 0")
            self.tables[group, slot, : len(own)] = own
            writes.append(self._triples(group * self.rows + slot, own))
            fresh.append(own[cached:])
        return writes[0] if len(writes) == 1 else np.concatenate(writes), fresh

    def write(self, step: Step) -> tuple[IntArray, list[IntArray]]:
        """Apply the page table writes of a step; return them, and of each group the pages written."""
        triples, fresh = NO_WRITES, [NO_PAGES]
        if step.pages:
            triples = _parts(ids_of(step.pages), 3, "(slot, index, page) triples")
            if ((triples - self._least_write).view(np.uint64) >= self._writes_extent).any():
                raise self._error(0)
            self.tables[0, triples[:, 0], triples[:, 1]] = triples[:, 2]
            fresh = [triples[:, 2]]
        if step.window_pages:
            quads = _parts(ids_of(step.window_pages), 4, "(group, slot, index, page) quadruples")
            window, slot, index, page = quads[:, 0] - 1, quads[:, 1], quads[:, 2], quads[:, 3]
            if not lies_within(window, 0, len(self._window_counts)):
                raise StepError(f"a page write outside the {len(self._window_counts)} page groups of windows")
            is_inside = lies_within(slot, 0, self.rows - 1) and lies_within(index, 0, self.max_pages)
            if not is_inside or (page < 0).any() or (page > self._window_counts[window]).any():
                raise self._error(1 + int(window[0]))
            self.tables[window + 1, slot, index] = page
            rows = (window + 1) * self.rows + slot
            triples = np.concatenate((triples, np.stack((rows, index, page), axis=1)))
            fresh += [page[window == one] for one in range(len(self._window_counts))]
        return triples, fresh

    def _check_granted(self, pages: IntArray, least: int, group: int) -> None:
        if len(pages) > self.max_pages or not lies_within(pages, least, self._counts[group] + 1):
            raise self._error(group)

    def _triples(self, row: int, pages: IntArray) -> IntArray:
        triples = np.empty((len(pages), 3), dtype=np.int64)
        triples[:, 0], triples[:, 1], triples[:, 2] = row, self._indices[: len(pages)], pages
        return triples

    def _error(self, group: int) -> StepError:
        bounds = (self._capacity.max_slots, self.max_pages, self._counts[group] + 1)
        return StepError(f"a page write outside slots, row and pool {bounds}")


def lies_within(values: IntArray, least: int, end: int) -> bool:
    """Return whether `least` <= each value < `end`.

    Uses argmin and argmax, which take half the time of min and max with cold caches, as for a single request."""
    return not len(values) or bool(values[values.argmin()] >= least and values[values.argmax()] < end)


def _parts(flat: IntArray, width: int, what: str) -> IntArray:
    if flat.size % width:
        raise StepError(f"{flat.size} numbers are no {what}")
    return flat.reshape(-1, width)
