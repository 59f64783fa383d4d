"""What an engine can take: its throughput measured by a pilot run, its size, and arrivals at a rate."""

import random
from collections.abc import Sequence

import msgspec

from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.request import Workload
from quartet.wire.config import SchedulerConfig

UNBOUNDED_QUEUE = 1 << 30


def capacity(engine: SimulatedEngine, requests: Sequence[Workload], config: SchedulerConfig) -> float:
    """Return the requests a second that an engine finishes when all of them come at once.

    Measured between the first and the last tenth to finish, so that filling and emptying the batch do not count.
    """
    ends = sorted(outcome.end_s for outcome in simulate(requests, engine, config).outcomes)
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (last - first) / (ends[last] - ends[first])


def speed_for(load: float, engine: SimulatedEngine, requests: Sequence[Workload], config: SchedulerConfig) -> float:
    """Return how many times as fast a trace has to arrive to be `load` times what an engine can take of it."""
    most = capacity(engine, [msgspec.structs.replace(one, arrival_s=0.0) for one in requests], config)
    return load * most * (requests[-1].arrival_s - requests[0].arrival_s) / len(requests)


def at_speed(requests: Sequence[Workload], speed: float) -> list[Workload]:
    """Return the requests, arriving `speed` times as fast."""
    return [msgspec.structs.replace(one, arrival_s=one.arrival_s / speed) for one in requests]


def fcfs(running: int = 0) -> SchedulerConfig:
    """Return plain settings with `running` slots, 0 for the default, and a queue that refuses no request."""
    return SchedulerConfig(max_running_requests=running, max_queued_requests=UNBOUNDED_QUEUE)


def poisson(rng: random.Random, count: int, rate: float) -> list[float]:
    """Return Poisson arrival times at `rate` a second; all 0 without a rate."""
    if not rate:
        return [0.0] * count
    times, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


def sized_to(engine: SimulatedEngine, kv_tokens: int) -> SimulatedEngine:
    """Return the engine with room for at least `kv_tokens`, in whole pages."""
    pages = -(-kv_tokens // engine.page_size)
    return msgspec.structs.replace(engine, kv_tokens=pages * engine.page_size)
