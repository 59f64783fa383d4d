"""The highest response ratio first: what a request has waited for, per token that it still needs."""

from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.request import Request


def order_by_response_ratio(requests: list[Request], context: PolicyContext) -> None:
    """hrrn: waited / uncached, largest first; requests cached whole before, requests put off for a sibling last.

    Both are in prefill tokens: those the engine has computed since the request was queued, and those of its prompt
    that are not cached. There is no bound on waiting: where requests that need little arrive faster than they are
    served, their ratios grow faster than that of one that needs much, which is never admitted (scenario cold-start,
    from 1.5 arrivals for each admission on).
    """

    def rank(request: Request) -> tuple[bool, bool, float]:
        uncached = request.prompt_tokens - request.matched_tokens
        if uncached <= 0:
            return (request.is_deprioritized, False, 0.0)
        waited = context.processed_tokens - request.processed_at_entry
        return (request.is_deprioritized, True, -waited / uncached)

    requests.sort(key=rank)
