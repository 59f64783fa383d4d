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
        self.last_cause = ""
        self.was_ready = False
        self.died_s: float | None = None
        self.recovery_s = 0.0

    @property
    def is_up(self) -> bool:
        """Whether the process is ready, or not needed."""
        return self.spec.is_spare or (self.child is not None and self.child.is_ready)

    def grant_grace(self, now: float) -> None:
        """Restart the deadlines of its child."""
        if self.child is not None:
            self.child.liveness.grant_grace(now)

    def on_ready(self, now: float) -> None:
        """Note that its child is ready: a sign of life, which may come before the first heartbeat."""
        self.grant_grace(now)
        self.was_ready = True
        if self.died_s is not None:
            self.recovery_s, self.died_s = now - self.died_s, None

    def on_death(self, child: Child, code: int, now: float) -> None:
        """Note that a child, which will be followed by another, has ended with that exit code."""
        self.restarts += 1
        self.last_end, self.last_cause = child.last_end(code), child.last_cause(code)
        self.died_s = self.died_s or now

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
        return ProcessStatus(
            self.spec.role,
            self.spec.rank,
            pid,
            Epoch(self.epoch),
            state,
            phase,
            self.restarts,
            self.last_end,
            self.recovery_s,
            self.last_cause,
        )
