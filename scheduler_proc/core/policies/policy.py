"""A policy by its name: what a prefill pass calls before it takes requests from the queue."""

from operator import attrgetter

from quartet.wire.config import POLICIES, SchedulerConfig
from quartet.wire.errors import ConfigError
from scheduler_proc.core.policies.aged import Aged
from scheduler_proc.core.policies.arrival import keep_arrival, order_by_output
from scheduler_proc.core.policies.cache_aware import CacheAware
from scheduler_proc.core.policies.context import CacheAgnostic, Ordering, PolicyContext
from scheduler_proc.core.policies.levels import PREFIX, Levels
from scheduler_proc.core.policies.longest_prefix import order_by_prefix, order_by_service
from scheduler_proc.core.policies.matching import PrefixMatcher, forget_matches
from scheduler_proc.core.policies.response_ratio import order_by_response_ratio
from scheduler_proc.core.policies.routing import order_by_routing_key
from scheduler_proc.core.policies.short_prefill import order_by_prefill
from scheduler_proc.core.policies.shuffle import shuffle
from scheduler_proc.core.policies.subtree import order_by_depth, order_by_subtree
from scheduler_proc.core.policies.tenants import TenantShares
from scheduler_proc.core.request import Request

REFRESH_PASSES = 32
"""Passes from one refresh of the waiting requests' prefixes to the next (POL-4)."""
REFRESH_REQUESTS = 128

_ARRIVAL = attrgetter("qseq")
_URGENCY = attrgetter("urgency")
_URGENCY_AND_ARRIVAL = attrgetter("urgency", "qseq")


class Policy:
    """Sorts the waiting queue. `tenants` shares the service out among tenants, if that is wanted.

    Args:
        config: scheduling settings.
        ordering: sorts a queue in order of arrival.
        matcher: the one that the ordering uses.
    """

    def __init__(self, config: SchedulerConfig, ordering: Ordering, matcher: PrefixMatcher) -> None:
        self._ordering = ordering
        self._matcher = matcher
        # Levels names priority where it wants it; before the key of every other policy it comes first (POL-6).
        self._is_urgency_first = config.enable_priority_scheduling and not isinstance(ordering, Levels)
        self._refreshes = config.radix_eviction_policy in ("lru", "session")
        self.tenants = TenantShares(config) if config.tenant_weights else None

    def order(self, waiting: list[Request], context: PolicyContext) -> None:
        """Sort `waiting` in place: by arrival (POL-2), then by the policy's key, urgency before it (POL-6). Requests of
        tenants that have had their share stand behind the others, to which the policy's key applies (POL-9).

        With priority scheduling on, the order of arrival is one within each urgency, so that a cache-aware policy
        looks at the first of the most urgent requests. Cache-aware policies set matched_tokens, matched_node and
        is_deprioritized of each request, and count cached prefixes as just used (POL-3); the others do so every 32nd
        pass, from the tail to the head, so that the prefix needed first is evicted last (POL-4).
        """
        waiting.sort(key=_URGENCY_AND_ARRIVAL if self._is_urgency_first else _ARRIVAL)
        behind = self.tenants.take_ineligible(waiting, context.now) if self.tenants is not None else []
        is_matched = self._ordering.arrange(waiting, context)
        if behind:
            forget_matches(behind)
            waiting += behind
        if self._is_urgency_first:
            waiting.sort(key=_URGENCY)
        is_refresh_due = self._refreshes and context.pass_number % REFRESH_PASSES == 0
        if is_refresh_due and not is_matched and context.tree is not None:
            self._matcher.refresh(waiting[:REFRESH_REQUESTS][::-1], context.tree)


def make_policy(config: SchedulerConfig) -> Policy:
    """Return the policy that the configuration names; raises ConfigError if there is none."""
    matcher = PrefixMatcher()
    return Policy(config, _ordering(config.schedule_policy, matcher), matcher)


def _ordering(name: str, matcher: PrefixMatcher) -> Ordering:
    match name:
        case "fcfs":
            return CacheAgnostic(keep_arrival)
        case "lof":
            return CacheAgnostic(order_by_output)
        case "random":
            return CacheAgnostic(shuffle)
        case "routing-key":
            return CacheAgnostic(order_by_routing_key)
        case "lpm":
            return CacheAware(order_by_prefix, matcher, puts_off_siblings=True, falls_back=True)
        case "lpm-aging":
            return CacheAware(Aged(order_by_prefix), matcher, puts_off_siblings=True, falls_back=True)
        case "session":
            return CacheAware(Aged(order_by_service), matcher, puts_off_siblings=True, falls_back=True)
        case "hrrn":
            return CacheAware(order_by_response_ratio, matcher, puts_off_siblings=True, falls_back=True)
        case "shortest-prefill-first":
            return CacheAware(order_by_prefill, matcher, puts_off_siblings=True, falls_back=False)
        case "dfs-weight":
            return CacheAware(order_by_subtree, matcher, puts_off_siblings=False, falls_back=False)
        case "dfs-weight-tutorial":
            return CacheAware(order_by_depth, matcher, puts_off_siblings=False, falls_back=False)
    if name.startswith(PREFIX):
        return Levels(name, matcher)
    raise ConfigError(f"schedule_policy: {name!r} is not one of {', '.join(POLICIES)}, {PREFIX}LEVELS")
