"""What the cache-aware policies have in common: how much of the queue they look at, and when they do not (POL-5)."""

from scheduler_proc.core.policies.context import Arrange, PolicyContext
from scheduler_proc.core.policies.matching import PrefixMatcher, deprioritize_siblings, forget_matches
from scheduler_proc.core.request import Request


class CacheAware:
    """Matches and sorts the first `prefix_match_queue_max` requests; the rest follow in order of arrival.

    With `prefix_match_overflow` fcfs a longer queue is left in order of arrival as a whole, or matched as a whole by a
    policy that does not fall back. Without a tree the queue stays in order of arrival.

    Args:
        arrange: sorts the requests that have been matched.
        matcher: looks them up.
        puts_off_siblings: whether rule 4.3 applies.
        falls_back: whether the policy gives up on a long queue (see above).
    """

    def __init__(self, arrange: Arrange, matcher: PrefixMatcher, puts_off_siblings: bool, falls_back: bool) -> None:
        self._arrange = arrange
        self._matcher = matcher
        self._puts_off_siblings = puts_off_siblings
        self._falls_back = falls_back

    def arrange(self, waiting: list[Request], context: PolicyContext) -> bool:
        """Sort a queue in order of arrival in place; say whether prefixes were looked up."""
        limit = self._limit(len(waiting), context)
        if context.tree is None or not limit:
            forget_matches(waiting)
            return False
        window = waiting[:limit]
        self._matcher.match(window, context.tree)
        forget_matches(waiting[limit:])
        if self._puts_off_siblings:
            deprioritize_siblings(window, context.config)
        self._arrange(window, context)
        waiting[:limit] = window
        return True

    def _limit(self, length: int, context: PolicyContext) -> int:
        limit = context.config.prefix_match_queue_max
        if length <= limit or context.config.prefix_match_overflow == "first":
            return limit
        return 0 if self._falls_back else length
