"""The standby worker of a launch: when one is started, and which death it makes good. Pure: time is an argument.

worker ready, no standby  ──► a standby is started; it loads what needs no KV pool, and waits
worker dead, standby ready ──► the standby gets the worker's place and epoch + 1, as a process started anew would
holder of the weights dead ──► its memory is gone: every process that has mapped it is killed, and starts again
"""

from collections.abc import Sequence

from quartet.supervisor.slot import ProcessSlot
from quartet.supervisor.spawn import Child, CommonEnd
from quartet.wire.frames import LastEnd
from quartet.wire.ids import Role


class Standby:
    """The slots of a launch that a standby concerns; without --standby there are none, and nothing is ever due.

    Args:
        slots: every process of the launch.
    """

    def __init__(self, slots: Sequence[ProcessSlot]) -> None:
        by_role = {slot.spec.role: slot for slot in slots}
        self._slot = by_role.get(Role.STANDBY)
        self._worker = by_role.get(Role.WORKER)
        self._not_before_s: float | None = 0.0

    def due(self, now: float) -> ProcessSlot | None:
        """Return the standby's slot if one is to be started: only a worker that serves leaves time for it."""
        slot, worker = self._slot, self._worker
        if slot is None or slot.child is not None or worker is None or self._not_before_s is None:
            return None
        is_serving = worker.child is not None and worker.child.is_ready and not worker.child.is_killed
        return slot if is_serving and now >= self._not_before_s else None

    def on_death(self, delay_s: float | None, now: float) -> str:
        """Note the death of a standby, and how long to wait for the next start; None: there will be none.

        Returns what follows, for the user."""
        assert self._slot is not None, "there is no standby"
        self._slot.restarts += 1
        self._not_before_s = None if delay_s is None else now + delay_s
        return "going on without" if delay_s is None else "starting it again"

    def take(self, slot: ProcessSlot, now: float) -> Child | None:
        """Return the child that is to continue as the worker, if that is the slot and a standby is ready."""
        if slot is not self._worker or self._slot is None:
            return None
        child = self._slot.child
        if child is None or not child.can_take_over(now):
            return None
        self._slot.child = None
        return child

    def on_exit(self, slot: ProcessSlot, code: int) -> None:
        """Kill the children that have mapped the memory of the process in that slot, which has ended with that code.

        It runs no step, so its end says nothing against theirs."""
        if slot.spec.role is not Role.WEIGHTS:
            return
        for one in (self._worker, self._slot):
            if one is not None and one.child is not None:
                one.child.kill_dependent(CommonEnd(slot.spec.name, LastEnd.KILLED, code, True))
