"""The order of the waiting queue (rules POL). A policy sorts in place at the start of a prefill pass."""

from collections.abc import Callable

from scheduler_proc.core.request import Request

Policy = Callable[[list[Request]], None]


def order_fcfs(waiting: list[Request]) -> None:
    """Order by entry into the queue."""
    waiting.sort(key=lambda request: request.qseq)


POLICIES: dict[str, Policy] = {"fcfs": order_fcfs}
"""By the name of --schedule-policy."""
