"""Workloads by name, each on the engine that makes its point visible.

A scenario takes a base engine, a seed and its parameters, and returns requests and the engine with the size that the
point needs (KV, slots). Where a rate is a share of capacity, capacity is measured: the same requests all at once, fcfs.
"""

import inspect
import math
import random
from collections.abc import Callable

import msgspec

from quartet.simulator.capacity import capacity, fcfs, poisson, sized_to
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.request import Workload
from quartet.wire.errors import ConfigError


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A workload on an engine. `max_running_requests` is the number of slots that it wants, 0 for the default."""

    name: str
    engine: SimulatedEngine
    requests: list[Workload]
    max_running_requests: int = 0


def rag(
    engine: SimulatedEngine,
    seed: int,
    requests: int = 100,
    rate: float = 0.0,
    groups: int = 8,
    prefix_tokens: int = 2048,
    own_tokens: int = 64,
    output_tokens: int = 16,
    held_prefixes: float = 2.5,
    running: int = 16,
) -> Scenario:
    """Shared documents: `requests` at once (or at `rate` a second) in shuffled groups that share a long prefix.

    KV holds `held_prefixes` prefixes and what `running` requests have of their own.
    """
    own_pages = -(-(own_tokens + output_tokens) // engine.page_size)
    kv_tokens = int(held_prefixes * prefix_tokens) + running * own_pages * engine.page_size
    rng = random.Random(seed)
    members = [number % groups for number in range(requests)]
    rng.shuffle(members)
    times = poisson(rng, requests, rate)
    workload = [
        Workload(
            arrival_s=at,
            max_tokens=output_tokens,
            output_tokens=output_tokens,
            prefix_group=str(group),
            prefix_tokens=prefix_tokens,
            own_tokens=own_tokens,
        )
        for at, group in zip(times, members, strict=True)
    ]
    return Scenario(name="rag", engine=sized_to(engine, kv_tokens), requests=workload, max_running_requests=running)


def priority(
    engine: SimulatedEngine,
    seed: int,
    requests: int = 2000,
    rate: float = 0.0,
    load: float = 0.95,
    input_tokens: int = 512,
    output_tokens: int = 128,
    share_high: float = 0.2,
    high: int = 10,
    low: int = 0,
    running: int = 8,
) -> Scenario:
    """Two classes, Poisson at `load` of capacity: `share_high` of the requests have priority `high`, the rest `low`.

    The default values differ by as much as the preemption threshold, so that no running request is preempted; a larger
    `high` preempts. Eight slots, so that waiting is most of what a request sees; and many requests, because a queue
    near capacity takes hundreds of service times to become as long as it is going to be.
    """
    rng = random.Random(seed)
    shape = Workload(arrival_s=0, max_tokens=output_tokens, output_tokens=output_tokens, own_tokens=input_tokens)
    # Slots are what is scarce here, so that no request waits for KV.
    sized = sized_to(engine, 2 * running * (input_tokens + output_tokens))
    rate = rate or load * capacity(sized, [shape] * max(20 * running, 200), fcfs(running))
    workload = []
    for at in poisson(rng, requests, rate):
        is_high = rng.random() < share_high
        workload.append(
            msgspec.structs.replace(
                shape, arrival_s=at, priority=high if is_high else low, class_name="high" if is_high else "low"
            )
        )
    return Scenario(name="priority", engine=sized, requests=workload, max_running_requests=running)


def overload(
    engine: SimulatedEngine,
    seed: int,
    requests: int = 400,
    rate: float = 0.0,
    input_tokens: int = 64,
    max_tokens: int = 512,
    median_output_tokens: int = 256,
    spread: float = 0.8,
    running: int = 64,
    kv_share: float = 0.6,
) -> Scenario:
    """KV for `kv_share` of peak demand: all at once (or at `rate`), log-normal outputs under a generous limit.

    Peak demand is the most KV that the same requests hold at `running` a time when there is no limit.
    """
    rng = random.Random(seed)
    workload = []
    for at in poisson(rng, requests, rate):
        length = int(median_output_tokens * rng.lognormvariate(0.0, spread))
        workload.append(
            Workload(
                arrival_s=at,
                max_tokens=max_tokens,
                output_tokens=min(max(1, length), max_tokens),
                own_tokens=input_tokens,
            )
        )
    unlimited = sized_to(engine, 2 * running * (input_tokens + max_tokens))
    peak = simulate(workload, unlimited, fcfs(running)).timeline.max_kv_used_tokens
    return Scenario(
        name="overload",
        engine=sized_to(engine, int(kv_share * peak)),
        requests=workload,
        max_running_requests=running,
    )


def cold_start(
    engine: SimulatedEngine,
    seed: int,
    requests: int = 400,
    rate: float = 0.0,
    arrivals_per_admission: float = 2.0,
    backlog: int = 24,
    prefix_tokens: int = 2048,
    own_tokens: int = 64,
    output_tokens: int = 16,
    running: int = 8,
) -> Scenario:
    """One cold request under a steady stream of hot ones that share a cached prefix.

    `backlog` hot requests wait when it comes; after that hot ones arrive evenly, `arrivals_per_admission` times as
    fast as the engine admits them.
    """
    hot = Workload(
        arrival_s=0,
        max_tokens=output_tokens,
        output_tokens=output_tokens,
        prefix_group="hot",
        prefix_tokens=prefix_tokens,
        own_tokens=own_tokens,
        class_name="hot",
    )
    own_tokens_each = own_tokens + output_tokens + 2 * engine.page_size
    sized = sized_to(engine, 2 * (prefix_tokens + engine.page_size) + running * own_tokens_each)
    rate = rate or arrivals_per_admission * capacity(sized, [hot] * 200, fcfs(running))
    cold = msgspec.structs.replace(
        hot, prefix_group=None, prefix_tokens=0, own_tokens=prefix_tokens + own_tokens, class_name="cold"
    )
    first = backlog + running
    stream = [msgspec.structs.replace(hot, arrival_s=(at + 1) / rate) for at in range(requests - first)]
    workload = [hot] * first + [cold] + stream
    del seed  # Nothing here is drawn.
    return Scenario(name="cold-start", engine=sized, requests=workload, max_running_requests=running)


def long_prompts(
    engine: SimulatedEngine,
    seed: int,
    requests: int = 6,
    rate: float = 0.0,
    streams: int = 16,
    stream_input_tokens: int = 256,
    stream_output_tokens: int = 4096,
    input_tokens: int = 65_536,
    output_tokens: int = 16,
    start_s: float = 2.0,
    interval_s: float = 5.0,
) -> Scenario:
    """`streams` requests decode while `requests` long prompts arrive, one every `interval_s` (or at `rate`).

    With `requests` 0 it shows the gaps between tokens that the streams have undisturbed.
    """
    interval_s = 1 / rate if rate else interval_s
    rng = random.Random(seed)
    stream = Workload(
        arrival_s=0,
        max_tokens=stream_output_tokens,
        output_tokens=stream_output_tokens,
        own_tokens=stream_input_tokens,
        class_name="stream",
    )
    prompts = [
        Workload(
            arrival_s=start_s + (number + rng.random() / 10) * interval_s,
            max_tokens=output_tokens,
            output_tokens=output_tokens,
            own_tokens=input_tokens,
            class_name="long",
        )
        for number in range(requests)
    ]
    long_enough = msgspec.structs.replace(
        engine, context_length=max(engine.context_length, input_tokens + output_tokens + engine.page_size)
    )
    return Scenario(name="long-prompts", engine=long_enough, requests=[stream] * streams + prompts)


def steady(
    engine: SimulatedEngine,
    seed: int,
    requests: int = 2000,
    rate: float = 0.0,
    load: float = 0.5,
    input_tokens: int = 256,
    output_tokens: int = 128,
    tenants: int = 1,
) -> Scenario:
    """Plain traffic at `load` of capacity, Poisson, each request of one of `tenants`.

    Capacity is that of full prefill steps; requests that come one by one make smaller ones, so that with the default
    step order the slots fill up from about 0.7 on.
    """
    rng = random.Random(seed)
    shape = Workload(arrival_s=0, max_tokens=output_tokens, output_tokens=output_tokens, own_tokens=input_tokens)
    rate = rate or load * capacity(engine, [shape] * 1500, fcfs())
    workload = [
        msgspec.structs.replace(shape, arrival_s=at, tenant=f"tenant-{rng.randrange(tenants)}" if tenants > 1 else "")
        for at in poisson(rng, requests, rate)
    ]
    return Scenario(name="steady", engine=engine, requests=workload)


AT_LEAST_ONE = frozenset({"groups", "input_tokens", "running", "stream_input_tokens", "tenants"})
ABOVE_ZERO = frozenset({"arrivals_per_admission", "kv_share", "load"})
"""Parameters without which there is nothing to simulate; 0 of any other is a case of its own."""

SCENARIOS: dict[str, Callable[..., Scenario]] = {
    "rag": rag,
    "priority": priority,
    "overload": overload,
    "cold-start": cold_start,
    "long-prompts": long_prompts,
    "steady": steady,
}


def make_scenario(name: str, engine: SimulatedEngine, seed: int, given: dict[str, str]) -> Scenario:
    """Return a scenario with its parameters as text (`requests` and `rate` are parameters of each).

    Raises ConfigError for an unknown name, parameter or a value that is no number, naming what there is.
    """
    function = SCENARIOS.get(name)
    if function is None:
        raise ConfigError(f"--scenario: {name!r} is not one of {', '.join(SCENARIOS)}")
    parameters = inspect.signature(function).parameters.values()
    known = {one.name: type(one.default) for one in parameters if one.default is not one.empty}
    values: dict[str, float] = {}
    for key, text in given.items():
        if key not in known:
            raise ConfigError(f"--scenario-set {key}: scenario {name} has {', '.join(known)}")
        values[key] = _parameter(key, known[key], text)
    if values.get("prefix_tokens") == values.get("own_tokens") == 0:
        raise ConfigError("--scenario-set prefix_tokens, own_tokens: 0 of both is an empty prompt")
    scenario = function(engine, seed, **values)
    if not scenario.requests:
        raise ConfigError(f"--requests: scenario {name} has none to simulate")
    return scenario


def _parameter(name: str, kind: type[float], text: str) -> float:
    """Return a parameter's value as its default's type; raises ConfigError."""
    try:
        value = kind(text)
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise ConfigError(f"--scenario-set {name}: {text!r} is not {wanted}") from None
    if not math.isfinite(value):
        raise ConfigError(f"--scenario-set {name}: {text} is not a finite number")
    if value < 0 or (value < 1 and name in AT_LEAST_ONE):
        raise ConfigError(f"--scenario-set {name}: {text} must be {int(name in AT_LEAST_ONE)} or more")
    if value == 0 and name in ABOVE_ZERO:
        raise ConfigError(f"--scenario-set {name}: {text} must be more than 0")
    return value
