"""The client's view of the processes: the table, their epochs, their metrics, and whether requests are taken."""

from quartet.wire.codec import Source
from quartet.wire.frames import Exempt, ProcessStatus, ProcessTable, Snapshot
from quartet.wire.ids import Epoch, Role

REQUIRED_ROLES = (Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)


def exempt(process: ProcessStatus) -> Exempt:
    """Return the frame that does not count the death before this incarnation: it is pinned on a request."""
    return Exempt(process.role, process.rank, Epoch(process.epoch - 1))


class Processes:
    """The processes of the launch, as the supervisor's tables and the snapshots show them."""

    def __init__(self) -> None:
        self.table = ProcessTable([], False)
        self.snapshots: dict[str, Snapshot] = {}
        self.is_alive = False
        """Whether every role was ready once: the engine is up or recovering."""
        self.is_stopping = False
        self._epochs: dict[int, int] = {}
        """By role and rank in one number, which is looked up for each frame."""

    @property
    def is_accepting(self) -> bool:
        """Whether every role is ready and the service is not draining."""
        return not self.is_draining and self.is_complete

    @property
    def is_complete(self) -> bool:
        """Whether every process that requests pass through is ready: each has its share of them."""
        states = {role: [one.state for one in self.table.processes if one.role is role] for role in REQUIRED_ROLES}
        return all(found and set(found) == {"ready"} for found in states.values())

    @property
    def is_draining(self) -> bool:
        """Whether the service is shutting down."""
        return self.table.is_draining or self.is_stopping

    def update(self, table: ProcessTable) -> list[ProcessStatus]:
        """Take a table; return the rows of the processes that have been restarted since the last one."""
        self.table = table
        restarted = []
        for process in table.processes:
            key = process.role << 8 | process.rank
            before = self._epochs.get(key)
            self._epochs[key] = process.epoch
            if before is not None and process.epoch > before:
                restarted.append(process)
        self.is_alive = self.is_alive or self.is_accepting
        return restarted

    def is_stale(self, source: Source) -> bool:
        """Return whether a frame's sender is an incarnation that has ended (faults R7)."""
        return source.epoch < self._epochs.get(source.role << 8 | source.rank, 0)
