"""First come first served, and the longest output first."""

from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.request import Request


def keep_arrival(waiting: list[Request], context: PolicyContext) -> None:
    """fcfs: leave the order of arrival."""


def order_by_output(waiting: list[Request], context: PolicyContext) -> None:
    """lof: the largest max_new_tokens (M, clamped) first, so that long answers overlap with each other."""
    waiting.sort(key=lambda request: -request.max_new_tokens)
