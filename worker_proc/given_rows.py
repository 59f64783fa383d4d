"""The decode rows that a step names, with drafted tokens among them: checked against slots and capacity."""

import numpy as np
from numpy.typing import NDArray

from worker_proc.contract import Capacity, StepError

IntArray = NDArray[np.int64]


def given_rows(
    flat: IntArray, is_decoding: NDArray[np.bool_], capacity: Capacity
) -> tuple[IntArray, IntArray, IntArray]:
    """Return slots, context lengths and ids of the triples in Step.rows, and raise StepError if they contradict
    `is_decoding` [max_slots + 1], the order that a step must have, or the model's limits."""
    if flat.size % 3:
        raise StepError(f"{flat.size} numbers are no (slot, context length, id) triples")
    slots, contexts, given = np.ascontiguousarray(flat.reshape(-1, 3).T)
    if slots.min() < 0 or slots.max() >= capacity.max_slots or not is_decoding[slots].all():
        raise StepError("a row names a slot that does not decode")
    is_same = np.diff(slots) == 0
    has_gap = is_same & (np.diff(contexts) != 1)
    if (np.diff(slots) < 0).any() or has_gap.any() or (is_same & (given[1:] < 0)).any():
        raise StepError("rows are not in the order of slots and lengths, or a drafted one has no id")
    if contexts.min() < 1 or contexts.max() > capacity.context_length + 1:
        raise StepError(f"a row beyond the context of {capacity.context_length}")
    if given.min() < -1 or given.max() >= capacity.vocab_size:
        raise StepError(f"an id outside the vocabulary of {capacity.vocab_size}")
    return slots, contexts, given
