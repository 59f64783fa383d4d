"""Copies of the states of linear attention: what a sequence starts from, and what is kept for others.

A checkpoint is a row of the states behind those of the slots, so a copy is one of a row to another, of all layers at
once. The scheduler says which; the device makes them in the order of its steps, so nothing waits for them.
"""

from collections.abc import Sequence

from worker_proc.ops.interface import LinearState
from worker_proc.slots import Entered, IntArray


class StateCheckpoints:
    """Copies rows of states.

    Args:
        states: of all layers, with rows for slots, padding and checkpoints; None of a model without.
        first: the row of checkpoint 0.
    """

    def __init__(self, states: LinearState | None, first: int) -> None:
        self._states = states
        self._first = first

    def restore(self, entered: Sequence[Entered]) -> None:
        """Queue the copies that sequences start from; before the step."""
        for one in entered:
            if one.frame.checkpoint >= 0:
                self._copy(self._first + one.frame.checkpoint, one.slot)

    def save(self, saves: IntArray) -> None:
        """Queue the copies of slots to checkpoints, [n, 2], one after the other; after the step."""
        for slot, number in saves.tolist():
            self._copy(slot, self._first + number)

    def _copy(self, source: int, target: int) -> None:
        assert self._states is not None
        for part in (self._states.window, self._states.matrix):
            part[:, target].copy_(part[:, source])
