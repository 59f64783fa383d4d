"""The order of the waiting queue (rules POL-1 to POL-6, PRI-3, 4.2 to 4.4, 4.8).

policy.py       the face: a policy by name, sorts the queue in place at the start of a prefill pass
context.py      what a policy may look at
matching.py     the cached prefix of each waiting request, and which requests share one with an earlier one
cache_aware.py  what every policy that looks at the cache has in common: how far it looks, and when it does not
one family each: arrival.py (fcfs, lof), shuffle.py (random), routing.py (routing-key), longest_prefix.py (lpm,
lpm-aging, session), response_ratio.py (hrrn), short_prefill.py (shortest-prefill-first), subtree.py (dfs-weight and
dfs-weight-tutorial), levels.py (multi)
aged.py         credit for waiting, of lpm-aging and session
tenants.py      which tenants' requests go before the others, whatever the policy
"""

from scheduler_proc.core.policies.context import PolicyContext
from scheduler_proc.core.policies.policy import Policy, make_policy
from scheduler_proc.core.policies.short_prefill import reserve_for_short

__all__ = ["Policy", "PolicyContext", "make_policy", "reserve_for_short"]
