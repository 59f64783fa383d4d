"""Several criteria, one after the other: multi:priority,lpm,fcfs and the like (PRI-3)."""

from collections.abc import Callable

from quartet.wire.errors import ConfigError
from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.policies.matching import PrefixMatcher, forget_matches
from scheduler_proc.core.request import Request

LEVELS: dict[str, Callable[[Request], int]] = {
    "priority": lambda request: request.urgency,
    "lpm": lambda request: -request.matched_tokens,
    "lof": lambda request: -request.max_new_tokens,
    "fcfs": lambda request: request.qseq,
}
PREFIX = "multi:"


class Levels:
    """Sorts once by the tuple of its levels, then by `seq`.

    In a queue longer than `prefix_match_queue_max` the level lpm counts among as many requests, the first by the levels
    that stand before it; the others follow (POL-5). With `prefix_match_overflow` fcfs, or without a tree, it counts for
    nothing. Sharing within the queue (4.3) is not looked at.

    Args:
        policy: `multi:` and a comma-separated list of names in LEVELS; raises ConfigError for anything else.
        matcher: looks requests up, if lpm is among the levels.
    """

    def __init__(self, policy: str, matcher: PrefixMatcher) -> None:
        names = policy.removeprefix(PREFIX).split(",")
        if not set(names) <= LEVELS.keys():
            raise ConfigError(f"schedule_policy: {policy!r} must list levels of {', '.join(LEVELS)} after {PREFIX}")
        self._matcher = matcher if "lpm" in names else None
        self._ranks = [LEVELS[name] for name in names]
        self._ranks_before = self._ranks[: names.index("lpm")] if "lpm" in names else []

    def arrange(self, waiting: list[Request], context: PolicyContext) -> bool:
        """Sort a queue in order of arrival in place; say whether prefixes were looked up."""
        limit = self._limit(len(waiting), context)
        if self._matcher is None or context.tree is None or not limit:
            forget_matches(waiting)
            self._sort(waiting)
            return False
        if limit < len(waiting):
            waiting.sort(key=lambda request: tuple(rank(request) for rank in self._ranks_before))
        window, rest = waiting[:limit], waiting[limit:]
        self._matcher.match(window, context.tree)
        forget_matches(rest)
        self._sort(window)
        self._sort(rest)
        waiting[:] = window + rest
        return True

    def _limit(self, length: int, context: PolicyContext) -> int:
        """Return how many requests are looked up."""
        limit = context.config.prefix_match_queue_max
        return limit if length <= limit or context.config.prefix_match_overflow == "first" else 0

    def _sort(self, requests: list[Request]) -> None:
        requests.sort(key=lambda request: (*(rank(request) for rank in self._ranks), request.seq))
