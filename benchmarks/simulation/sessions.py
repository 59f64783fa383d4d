"""How long agent sessions take by the eviction of the radix tree, in a pool that holds a part of what they need.

    python -m benchmarks.simulation.sessions TRACE [--rate 0.5] [--seconds 120] [--share 0.4] [--others 3] [--seed 0]
                                             [--order lpm-aging] [--policies lru,slru,fifo] [--preset llama-8b-h100]

TRACE is a list of sessions, such as LMCache's agents; `--rate` of them begin a second, repeated until they last for
`--seconds`. The demand is the largest sum of contexts of sessions between their first and last turn; the pool is
`--share` of it, the queue ordered by `--order`. `--others` requests a second of 1,000 tokens share nothing with
anything. Prints, for each policy of eviction, the time that a session waits for its turns (from arrival to end of
each, summed), the share of its prompts that was cached, and the others' 99th percentile of time to first token.
"""

import argparse
import collections
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from quartet.simulator.capacity import UNBOUNDED_QUEUE, poisson, sized_to
from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.record import Run
from quartet.simulator.request import Workload
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.wire.config import SchedulerConfig

OTHER_INPUT_TOKENS = 1000
OTHER_OUTPUT_TOKENS = 60
OTHER = "other"


def repeated(path: Path, rate: float, seed: int, seconds: float) -> list[Workload]:
    """Return the sessions of a trace, several times over with names of their own, as long as they begin in time."""
    found: list[Workload] = []
    begins_s, copy = 0.0, 0
    while begins_s < seconds:
        turns = load_trace(path, TraceOptions(rate=rate, seed=seed + copy))
        first_s: dict[str, float] = {}
        for turn in turns:
            first_s.setdefault(turn.session, turn.arrival_s)
        for turn in turns:
            if begins_s + first_s[turn.session] < seconds:
                pages = [f"{copy}.{name}" for name in turn.page_hashes or ()]
                name = f"{copy}.{turn.session}"
                at_s = begins_s + turn.arrival_s
                found.append(msgspec.structs.replace(turn, arrival_s=at_s, session=name, page_hashes=pages))
        begins_s += max(first_s.values())
        copy += 1
    return found


def demand_tokens(turns: Sequence[Workload]) -> int:
    """Return the largest sum, over time, of the contexts of sessions between their first and last turn."""
    by_session: dict[str, list[Workload]] = collections.defaultdict(list)
    for turn in turns:
        by_session[turn.session].append(turn)
    changes: list[tuple[float, int]] = []
    for own in by_session.values():
        largest = 0
        for turn in own:
            context = max(largest, turn.input_tokens + turn.output_tokens)
            changes.append((turn.arrival_s, context - largest))
            largest = context
        changes.append((own[-1].arrival_s + 1.0, -largest))
    return max(itertools.accumulate(change for _, change in sorted(changes)))


def others(rate: float, seconds: float, seed: int) -> list[Workload]:
    """Return requests that share nothing."""
    times = poisson(random.Random(f"others {seed}"), int(rate * seconds), rate)
    output = OTHER_OUTPUT_TOKENS
    return [
        Workload(arrival_s=at, max_tokens=output, output_tokens=output, own_tokens=OTHER_INPUT_TOKENS, session=OTHER)
        for at in times
    ]


def summary(run: Run) -> tuple[float, float, float]:
    """Return the mean time that a session waits, the cached share of its prompts, and the others' p99 TTFT."""
    waits: dict[str, float] = collections.defaultdict(float)
    cached = tokens = 0
    first_s: list[float] = []
    for one in run.outcomes:
        if one.request.session == OTHER:
            first_s.append(one.first_token_s - one.arrival_s)
            continue
        waits[one.request.session] += one.end_s - one.arrival_s
        cached += one.cached_tokens
        tokens += one.request.input_tokens
    first_s.sort()
    return sum(waits.values()) / len(waits), cached / tokens, first_s[len(first_s) * 99 // 100] if first_s else 0.0


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--others", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", default="lru,slru,fifo")
    parser.add_argument("--order", default="lpm-aging")
    parser.add_argument("--preset", default="llama-8b-h100")
    asked = parser.parse_args()
    turns = repeated(asked.trace, asked.rate, asked.seed, asked.seconds)
    need = demand_tokens(turns)
    engine = sized_to(preset(asked.preset), int(asked.share * need))
    requests = sorted([*turns, *others(asked.others, asked.seconds, asked.seed)], key=lambda one: one.arrival_s)
    print(f"{len(turns)} turns, {len(requests)} requests; demand {need} tokens, pool {engine.kv_tokens}")
    for policy in ("all in the pool", *asked.policies.split(",")):
        is_whole = policy == "all in the pool"
        size = sized_to(engine, 20 * need) if is_whole else engine
        strategy: Any = "lru" if is_whole else policy
        config = SchedulerConfig(
            schedule_policy=asked.order, radix_eviction_policy=strategy, max_queued_requests=UNBOUNDED_QUEUE
        )
        wait_s, share, first_s = summary(simulate(requests, size, config))
        told = f"session waits {wait_s:8.2f} s   cached {share:.3f}   others' p99 TTFT {first_s:.3f} s"
        print(f"{policy:16} {told}", flush=True)


if __name__ == "__main__":
    main()
