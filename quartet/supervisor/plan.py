"""Which processes a configuration needs, in the order in which they are started."""

from typing import NamedTuple

from quartet.wire.config import Config
from quartet.wire.ids import Role, process_name


class ProcessSpec(NamedTuple):
    """One process of the plan. `module` is what `python -m` runs."""

    role: Role
    rank: int
    module: str

    @property
    def name(self) -> str:
        """The process's address."""
        return process_name(self.role, self.rank)

    @property
    def is_spare(self) -> bool:
        """Whether the service is complete without it."""
        return self.role is Role.STANDBY


DRAIN_ORDER = (Role.API, Role.TOKENIZER, Role.SCHEDULER, Role.DETOK, Role.STANDBY, Role.WORKER, Role.WEIGHTS)
"""Clients first: a role is drained once every role that sends to it has been drained."""
MODULES = {Role.WEIGHTS: "worker_proc.holder", Role.STANDBY: "worker_proc"}
"""What roles run that have no package of their own."""


def plan_processes(config: Config) -> list[ProcessSpec]:
    """Return the processes of one launch; first those that take longest to become ready."""
    server = config.server
    counts = [
        # A simulated worker has no weights.
        (Role.WEIGHTS, int(server.standby and not config.worker.simulated_worker)),
        (Role.WORKER, config.worker.tp_size),
        (Role.API, server.api_procs),
        (Role.TOKENIZER, server.tokenizer_procs),
        (Role.SCHEDULER, 1),
        (Role.DETOK, server.detok_procs),
        (Role.STANDBY, int(server.standby)),
    ]
    return [
        ProcessSpec(role, rank, MODULES.get(role, f"{role.label}_proc"))
        for role, count in counts
        for rank in range(count)
    ]
