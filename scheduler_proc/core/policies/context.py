"""What a policy may look at beside the queue, and the shape that every policy has."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.radix import RadixTree
from scheduler_proc.core.request import Request


@dataclass(slots=True)
class PolicyContext:
    """The engine as it stands at the start of a pass.

    `tree` is None when the radix cache is disabled. `processed_tokens` are the prefill tokens that the engine has
    computed so far, `output_tokens` those that it has sampled; neither count falls. `pass_number` counts prefill
    passes, `now` is the time of this one.
    """

    config: SchedulerConfig
    tree: RadixTree | None
    running: Collection[Request]
    processed_tokens: int
    pass_number: int
    output_tokens: int = 0
    now: float = 0.0


Arrange = Callable[[list[Request], PolicyContext], None]
"""Sorts in place requests that stand in order of arrival. Sorts are stable, so ties keep that order."""


class Ordering(Protocol):
    """One way to order the queue."""

    def arrange(self, waiting: list[Request], context: PolicyContext) -> bool:
        """Sort in place a queue in order of arrival; say whether its prefixes were looked up in the tree."""
        ...


class CacheAgnostic:
    """An ordering that does not look at the cache."""

    def __init__(self, arrange: Arrange) -> None:
        self._arrange = arrange

    def arrange(self, waiting: list[Request], context: PolicyContext) -> bool:
        """Sort in place; never looks anything up."""
        self._arrange(waiting, context)
        return False
