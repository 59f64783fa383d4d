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


def combinations(requests: Sequence[Workload], config: SchedulerConfig, mixed_tokens: int = 0) -> list[Combination]:
    """Return the combinations of policy, step order, reservation and priority scheduling that a trace can tell apart.

    The first has the plain values: fcfs, prefill_first, ratio. Policies by prefix are left out where no prompt shares
    one, `random` and the tutorial's variant always; step orders are varied if `config` has a target for the gaps
    between tokens, because nothing else says what a gap is worth. `mixed_tokens` is the worker's (WorkerHello).
    """
    found = []
    has_priorities = len({request.priority for request in requests}) > 1
    for is_priority in (False, True) if has_priorities else (config.enable_priority_scheduling,):
        for order, is_mixing in _step_orders(config, mixed_tokens):
            for reservation in sorted(RESERVATIONS, key=lambda name: name != "ratio"):
                for policy in _policies(requests, config):
                    changed = msgspec.structs.replace(
                        config,
                        schedule_policy=policy,
                        reservation=reservation,
                        step_order=order,
                        enable_mixed_chunk=is_mixing,
                        tbt_target_ms=0.0 if order == "prefill_first" else config.tbt_target_ms,
                        enable_priority_scheduling=is_priority,
                    )
                    found.append(Combination(_flags(changed), changed))
    return found


def _step_orders(config: SchedulerConfig, mixed_tokens: int) -> list[tuple[str, bool | None]]:
    """Return step orders, each with `enable_mixed_chunk`."""
    if not config.tbt_target_ms:
        return [(config.step_order, config.enable_mixed_chunk)]
    mixing = (None, False) if mixed_tokens and config.enable_mixed_chunk is None else (config.enable_mixed_chunk,)
    orders = [("prefill_first", is_mixing) for is_mixing in mixing]
    return [*orders, ("decode_first", config.enable_mixed_chunk), ("slack", config.enable_mixed_chunk)]


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
    if config.enable_mixed_chunk is False:
        flags.append("--no-enable-mixed-chunk")
    if config.reservation != "ratio":
        flags.append(f"--reservation {config.reservation}")
    if config.enable_priority_scheduling:
        flags.append("--enable-priority-scheduling")
    return " ".join(flags)
