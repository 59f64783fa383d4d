"""What priority means (rules PRI-1, PRI-2); the api process and the scheduler both need it."""

from quartet.wire.config import SchedulerConfig

WORST = 1 << 63


def urgency_of(priority: int | None, config: SchedulerConfig) -> int:
    """Return sgn*prio, where smaller is more urgent whatever the sign; 0 with priority scheduling off.

    A request that names no priority gets the default, or else is the least urgent of all.
    """
    if not config.enable_priority_scheduling:
        return 0
    if priority is None:
        priority = config.default_priority_value
    if priority is None:
        return WORST - 1 if config.schedule_low_priority_values_first else WORST
    return priority if config.schedule_low_priority_values_first else -priority
