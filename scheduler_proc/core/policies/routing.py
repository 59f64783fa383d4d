"""Requests whose routing key is running already go first, the most frequent key before the others."""

import collections

from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.request import Request


def order_by_routing_key(waiting: list[Request], context: PolicyContext) -> None:
    """routing-key: keys by their count among the running requests, then keys that do not run by name."""
    counts = collections.Counter(request.routing_key for request in context.running if request.routing_key)
    if not counts:
        return

    def rank(request: Request) -> tuple[int, int, str]:
        count = counts.get(request.routing_key, 0)
        return (0, -count, request.routing_key) if count else (1, 0, request.routing_key)

    waiting.sort(key=rank)
