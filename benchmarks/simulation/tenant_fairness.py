"""What one tenant at many times its rate does to the others, with and without --tenant-weights.

    python -m benchmarks.simulation.tenant_fairness TRACE [--minutes 10] [--speed 1] [--times 10] [--seed 0]
                                                    [--quantum 8192] [--policy lpm-aging] [--preset llama-8b-h100]

TRACE is any trace with tenants, such as ServeGen's. The tenant with the most tokens comes `--times` as often. Prints
the light tenants' times to first token alone (the same trace without the heavy one) and beside it, the throughput of
both, and the largest gap in service between two waiting tenants beside its bound (INV-9), asked after every step.
"""

import argparse
import collections
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import preset
from quartet.simulator.record import Outcome, Run
from quartet.simulator.request import Workload
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.wire.config import SchedulerConfig
from scheduler_proc.core.policies.tenants import UNITS_OF_A_KV_TOKEN_SECOND, UNITS_OF_AN_OUTPUT

UNBOUNDED_QUEUE = 1 << 30


def heaviest(requests: Iterable[Workload]) -> str:
    """Return the tenant with the most tokens."""
    tokens: collections.Counter[str] = collections.Counter()
    for one in requests:
        tokens[one.tenant] += one.input_tokens + one.output_tokens
    return tokens.most_common(1)[0][0]


def times_as_often(requests: Sequence[Workload], tenant: str, times: int) -> list[Workload]:
    """Return the requests with those of a tenant repeated, spread over the time to its next one."""
    own = [one for one in requests if one.tenant == tenant]
    more = [
        msgspec.structs.replace(one, arrival_s=one.arrival_s + (after.arrival_s - one.arrival_s) * part / times)
        for one, after in itertools.pairwise(own)
        for part in range(1, times)
    ]
    return sorted([*requests, *more], key=lambda one: one.arrival_s)


def p99(values: Iterable[float]) -> float:
    """Return the 99th percentile."""
    found = sorted(values)
    return found[min(len(found) - 1, len(found) * 99 // 100)]


def first_token_s(run: Run, but: str) -> list[float]:
    """Return the times to first token of all tenants but one."""
    return [one.first_token_s - one.arrival_s for one in run.outcomes if one.request.tenant != but and one.is_finished]


def tokens_per_s(run: Run) -> float:
    """Return the tokens of prompts and outputs a second."""
    return sum(one.request.input_tokens + one.output_tokens for one in run.outcomes) / run.end_s


def bound_of(run: Run, engine: SimulatedEngine, config: SchedulerConfig) -> float:
    """Return the bound of INV-9 for this workload and the longest stay in the batch, weights being equal."""
    outcomes: list[Outcome] = run.outcomes
    prompt = max(one.request.input_tokens for one in outcomes)
    longest = sorted((one.request.max_tokens for one in outcomes), reverse=True)[: engine.max_slots]
    stay_s = max((left - entered for one in outcomes for entered, left in _stays(one)), default=0.0)
    kv = UNITS_OF_A_KV_TOKEN_SECOND * engine.kv_tokens * stay_s
    return config.tenant_quantum + config.max_prefill_tokens + prompt + UNITS_OF_AN_OUTPUT * sum(longest) + kv


def _stays(outcome: Outcome) -> Iterable[tuple[float, float]]:
    ends = [*outcome.left_s, outcome.end_s]
    return zip(outcome.entered_s, ends, strict=False)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--speed", type=float, default=1)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantum", type=int, default=SchedulerConfig().tenant_quantum)
    parser.add_argument("--policy", default="lpm-aging")
    parser.add_argument("--preset", default="llama-8b-h100")
    asked = parser.parse_args()
    engine = preset(asked.preset)
    options = TraceOptions(speed=asked.speed, first_minutes=asked.minutes, seed=asked.seed)
    requests = load_trace(asked.trace, options)
    heavy = heaviest(requests)
    crowd = times_as_often(requests, heavy, asked.times)
    print(f"{len(requests)} requests, {len({one.tenant for one in requests})} tenants; {heavy} has", end=" ")
    print(f"{sum(one.tenant == heavy for one in requests)}, then {sum(one.tenant == heavy for one in crowd)}")

    plain = SchedulerConfig(schedule_policy=asked.policy, max_queued_requests=UNBOUNDED_QUEUE)
    shared = msgspec.structs.replace(plain, tenant_weights=("default=1",), tenant_quantum=asked.quantum)
    alone = simulate([one for one in requests if one.tenant != heavy], engine, plain)
    before, after = simulate(crowd, engine, plain), simulate(crowd, engine, shared)
    alone_s = p99(first_token_s(alone, heavy))
    print(f"light tenants alone     p99 TTFT {alone_s:8.3f} s")
    for name, run in ((asked.policy, before), ("with --tenant-weights", after)):
        light_s = p99(first_token_s(run, heavy))
        print(
            f"{name:23} p99 TTFT {light_s:8.3f} s = {light_s / alone_s:6.2f} x   {tokens_per_s(run):7.0f} tokens/s   "
            f"longest queue {run.timeline.max_queued}"
        )
    print(f"throughput kept {tokens_per_s(after) / tokens_per_s(before):.3f}")
    gap, bound = after.largest_service_gap, bound_of(after, engine, shared)
    print(f"largest gap between waiting tenants {gap:.0f}, bound {bound:.0f}")


if __name__ == "__main__":
    main()
