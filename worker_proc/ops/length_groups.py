"""Decode rows that attend together on the CPU: rows of similar length, where padding would cost more than a call."""

import numpy as np

from worker_proc.slots import IntArray

# Rows attend in several groups if that saves so many padded tokens.
_WASTED_TOKENS = 1024


def group_by_length(lengths: IntArray) -> list[IntArray]:
    """Return the rows in groups of similar length; one group if splitting saves too little padding."""
    longest = int(lengths.max())
    if longest * len(lengths) - int(lengths.sum()) <= _WASTED_TOKENS:
        return [np.arange(len(lengths))]
    order = np.argsort(-lengths, kind="stable")
    groups, first = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or lengths[order[i]] * 2 < lengths[order[first]]:
            groups.append(np.sort(order[first:i]))
            first = i
    return groups
