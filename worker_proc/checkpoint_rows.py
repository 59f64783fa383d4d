"""What a step says of checkpoints of states, checked against slots and capacity."""

import numpy as np
from numpy.typing import NDArray

from quartet.wire.frames import Enter
from worker_proc.contract import Capacity, StepError

IntArray = NDArray[np.int64]


def check_start(frame: Enter, capacity: Capacity) -> None:
    """Raise StepError unless a sequence with a cached prefix starts from a checkpoint, in a model with states, and no
    other does."""
    if not -1 <= frame.checkpoint < capacity.checkpoints:
        raise StepError(f"checkpoint {frame.checkpoint} is outside 0..{capacity.checkpoints - 1}")
    if (frame.checkpoint >= 0) != (capacity.has_states and frame.cached_length > 0):
        raise StepError(
            f"a sequence with {frame.cached_length} cached tokens starts from checkpoint {frame.checkpoint}"
        )


def saved_rows(flat: IntArray, is_taken: NDArray[np.bool_], capacity: Capacity) -> IntArray:
    """Return the pairs (slot, checkpoint) in Step.saves, [n, 2]; raises StepError if they contradict `is_taken`
    [max_slots + 1] or the number of checkpoints."""
    if flat.size % 2:
        raise StepError(f"{flat.size} numbers are no (slot, checkpoint) pairs")
    slots, numbers = flat.reshape(-1, 2).T
    if slots.min() < 0 or slots.max() >= capacity.max_slots or not is_taken[slots].all():
        raise StepError("the state of a free slot is to be saved")
    if numbers.min() < 0 or numbers.max() >= capacity.checkpoints:
        raise StepError(f"a state is to be saved outside of {capacity.checkpoints} checkpoints")
    return flat.reshape(-1, 2)
