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


DRAIN_ORDER = (Role.API, Role.TOKENIZER, Role.SCHEDULER, Role.DETOK, Role.WORKER)
"""Clients first: a role is drained once every role that sends to it has been drained."""


def plan_processes(config: Config) -> list[ProcessSpec]:
    """Return the processes of one launch; the worker first, because it takes longest to become ready."""
    counts = [
        (Role.WORKER, 1),
        (Role.API, config.server.api_procs),
        (Role.TOKENIZER, config.server.tokenizer_procs),
        (Role.SCHEDULER, 1),
        (Role.DETOK, config.server.detok_procs),
    ]
    return [ProcessSpec(role, rank, f"{role.label}_proc") for role, count in counts for rank in range(count)]
