"""The ranks of a worker (--tp-size): processes that wait for each other in every step, so they live and die as one.

a rank dies   ──► the others of its epoch, and of earlier ones, are killed; all of them have had the same death
a rank starts ──► with the epoch of the rank that is ahead, or one more than its own: so they find each other
"""

from collections.abc import Sequence

from quartet.supervisor.slot import ProcessSlot
from quartet.supervisor.spawn import Child, CommonEnd
from quartet.wire.ids import Role


class Ranks:
    """The ranks among the processes of a launch; of any other role a process is alone.

    Args:
        slots: every process of the launch.
    """

    def __init__(self, slots: Sequence[ProcessSlot]) -> None:
        self._slots = slots

    def of(self, role: Role, rank: int) -> list[ProcessSlot]:
        """Return the slots of the process and of those that die with it."""
        return [
            slot for slot in self._slots if slot.spec.role is role and (role is Role.WORKER or slot.spec.rank == rank)
        ]

    def next_epoch(self, slot: ProcessSlot) -> int:
        """Return the epoch with which the process in that slot is to be started."""
        return max(slot.epoch + 1, *(one.epoch for one in self.of(slot.spec.role, slot.spec.rank)))

    def on_exit(self, slot: ProcessSlot, child: Child, code: int) -> None:
        """Kill the other ranks of a child that has ended with that exit code, unless they have been started since."""
        others = [one for one in self.of(slot.spec.role, slot.spec.rank) if one is not slot]
        for other in others:
            if other.child is not None and other.epoch <= slot.epoch:
                other.child.kill_dependent(CommonEnd(slot.spec.name, child.last_end(code), code, child.was_useful))
