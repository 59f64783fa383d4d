"""One process of the plan, through all its incarnations."""

from quartet.supervisor.plan import ProcessSpec
from quartet.supervisor.restart import RestartPolicy
from quartet.supervisor.spawn import Child
from quartet.wire.frames import LastEnd, ProcessStatus, ProcessTable
from quartet.wire.ids import Epoch


class ProcessSlot:
    """Its current child, epoch and restarts."""

    def __init__(self, spec: ProcessSpec, policy: RestartPolicy) -> None:
        self.spec = spec
        self.policy = policy
        self.child: Child | None = None
        self.epoch = 0
        self.restarts = 0
        self.last_end = LastEnd.NONE
        self.was_ready = False

    @property
    def is_up(self) -> bool:
        """Whether the process is ready, or not needed."""
        return self.spec.is_spare or (self.child is not None and self.child.is_ready)

    def has_seen(self, process_table: ProcessTable) -> bool:
        """Return whether the process has read this process table."""
        return (
            self.child is not None
            and self.child.beat is not None
            and self.child.beat.table_serial >= process_table.serial
        )

    def status(self, is_draining: bool, now: float) -> ProcessStatus:
        """Return this process's row of the process table."""
        child = self.child
        if child is None:
            state, phase, pid = "down", "", 0
        else:
            state = "starting" if not child.is_ready else "draining" if is_draining else "ready"
            if child.is_ready and child.liveness.is_unresponsive(now):
                state = "unresponsive"
            phase, pid = (child.beat.phase if child.beat else "starting"), child.pid
        epoch, restarts = Epoch(self.epoch), self.restarts
        return ProcessStatus(self.spec.role, self.spec.rank, pid, epoch, state, phase, restarts, self.last_end)
