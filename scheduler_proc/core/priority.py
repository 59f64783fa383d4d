"""Which request leaves a full queue (rule PRI-4); what priority means stands in quartet.wire.urgency."""

from collections.abc import Iterable

from scheduler_proc.core.request import Request


def least_urgent(requests: Iterable[Request]) -> Request | None:
    """Return the request that a more urgent newcomer displaces: the least urgent, of these the last in the queue."""
    return max(requests, key=lambda request: (request.urgency, request.qseq), default=None)
