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

    The level lpm counts for nothing in a queue longer than `prefix_match_queue_max`, or without a tree. Sharing within
    the queue (4.3) is not looked at.

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

    def arrange(self, waiting: list[Request], context: PolicyContext) -> bool:
        """Sort a queue in order of arrival in place; say whether prefixes were looked up."""
        is_matched = self._match(waiting, context)
        waiting.sort(key=lambda request: (*(rank(request) for rank in self._ranks), request.seq))
        return is_matched

    def _match(self, waiting: list[Request], context: PolicyContext) -> bool:
        if self._matcher is None:
            return False
        if context.tree is None or len(waiting) > context.config.prefix_match_queue_max:
            forget_matches(waiting)
            return False
        self._matcher.match(waiting, context.tree)
        return True
