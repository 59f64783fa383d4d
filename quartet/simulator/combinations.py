"""The configurations that are worth trying on a trace."""

from collections.abc import Sequence
from typing import get_args, get_type_hints

import msgspec

from quartet.simulator.request import Workload
from quartet.wire.config import SchedulerConfig

ANY_TRACE = ("fcfs", "hrrn", "shortest-prefill-first", "lof")
SHARED_PREFIXES = ("lpm", "lpm-aging", "dfs-weight")
ROUTING_KEYS = ("routing-key",)
RESERVATIONS: tuple[str, ...] = get_args(get_type_hints(SchedulerConfig)["reservation"])


class Combination(msgspec.Struct, frozen=True):
    """One configuration. `flags` are what to give to `quartet serve`, empty for the settings as they are."""

    flags: str
    config: SchedulerConfig


def combinations(requests: Sequence[Workload], config: SchedulerConfig) -> list[Combination]:
    """Return the combinations of policy, step order, reservation and priority scheduling that a trace can tell apart.

    The first has the plain values: fcfs, prefill_first, ratio. Policies by prefix are left out where no prompt shares
    one, `random` and the tutorial's variant always; step orders with a target take the one that `config` has.
    """
    found = []
    has_priorities = len({request.priority for request in requests}) > 1
    for is_priority in (False, True) if has_priorities else (config.enable_priority_scheduling,):
        for order in ("prefill_first", "decode_first", "slack") if config.tbt_target_ms else (config.step_order,):
            for reservation in sorted(RESERVATIONS, key=lambda name: name != "ratio"):
                for policy in _policies(requests, config):
                    changed = msgspec.structs.replace(
                        config,
                        schedule_policy=policy,
                        reservation=reservation,
                        step_order=order,
                        tbt_target_ms=0.0 if order == "prefill_first" else config.tbt_target_ms,
                        enable_priority_scheduling=is_priority,
                    )
                    found.append(Combination(_flags(changed), changed))
    return found


def _policies(requests: Sequence[Workload], config: SchedulerConfig) -> list[str]:
    policies = [*ANY_TRACE]
    if config.disable_radix_cache:
        policies.remove("shortest-prefill-first")
    elif any(one.prefix_tokens or one.page_hashes is not None or one.prompt_ids is not None for one in requests):
        policies += SHARED_PREFIXES
    if any(one.routing_key for one in requests):
        policies += ROUTING_KEYS
    return policies


def _flags(config: SchedulerConfig) -> str:
    """Return the flags of what advice varies; those at their defaults are left out, except for the policy."""
    flags = [f"--schedule-policy {config.schedule_policy}"]
    if config.step_order != "prefill_first":
        flags.append(f"--step-order {config.step_order} --tbt-target-ms {config.tbt_target_ms:g}")
    if config.reservation != "ratio":
        flags.append(f"--reservation {config.reservation}")
    if config.enable_priority_scheduling:
        flags.append("--enable-priority-scheduling")
    return " ".join(flags)
