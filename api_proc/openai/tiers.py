"""`service_tier`: OpenAI's word for how urgent a request is, as a priority of the scheduler."""

from api_proc.server.errors import invalid
from quartet.wire.config import SchedulerConfig

TIERS = ("auto", "default", "flex", "scale", "priority")
STEP = 100
"""How much more or less urgent a tier is than the server's default priority; preemption wants more than 10."""


def tier_priority(tier: str | None, config: SchedulerConfig) -> int | None:
    """Return the priority that a tier stands for, None for the server's default; raises RequestError 400.

    Where the default is the least urgent of all, flex is no less.
    """
    if tier not in (None, *TIERS):
        raise invalid("service_tier", f"service_tier must be one of {', '.join(TIERS)}")
    default = config.default_priority_value
    if tier not in ("flex", "priority") or (tier == "flex" and default is None):
        return None
    is_up = (tier == "priority") != config.schedule_low_priority_values_first
    return (default or 0) + (STEP if is_up else -STEP)


def tier_in_force(tier: str | None, priority: int | None, config: SchedulerConfig) -> str:
    """Return the tier that an answer names: what the request was served by; "" if it has asked for none.

    `priority` is that of the request's own field or header, which goes before its tier.
    """
    if not tier:
        return ""
    is_served = tier in ("flex", "priority") and config.enable_priority_scheduling and priority is None
    return tier if is_served else "default"
