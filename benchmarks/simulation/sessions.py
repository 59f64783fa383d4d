"""How long agent sessions take by order of the queue and eviction, in a pool that holds a part of what they need.

    python -m benchmarks.simulation.sessions TRACE [--rate 0.5] [--seconds 120] [--share 0.4] [--others 3] [--seed 0]
                                             [--ways lpm-aging/lru,session/session] [--recorded] [--preset NAME]

TRACE is a list of sessions, such as LMCache's agents; `--rate` of them begin a second, repeated until they last for
`--seconds`. Each turn is sent when the one before is answered, after the recorded gap: what lay between the two turns,
less what the first takes on an idle engine. With `--recorded` turns are sent at their recorded times, answered or not.
The demand is the largest sum of contexts of sessions between their first and last turn, by recorded times; the pool is
`--share` of it. `--others` requests a second of 1,000 tokens share nothing with anything, for 2.5 times `--seconds`.

Prints for each way (schedule policy / eviction policy), first for one pool that holds everything: the mean time that a
session waits for its turns (from arrival to end of each, summed), and the mean whole time of a session, gaps included;
both also relative to the first of `--ways`; the share of its prompts that was cached; the others' p99 TTFT.
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
from scheduler_proc.core.step_cost import StepCost, pairs

OTHER_INPUT_TOKENS = 1000
OTHER_OUTPUT_TOKENS = 60
OTHERS_LAST = 2.5


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


def by_session(turns: Sequence[Workload]) -> list[list[Workload]]:
    """Return the turns of each session."""
    found: dict[str, list[Workload]] = collections.defaultdict(list)
    for turn in turns:
        found[turn.session].append(turn)
    return list(found.values())


def answered_first(turns: Sequence[Workload], cost: StepCost) -> list[Workload]:
    """Return the turns such that each is sent after the answer to the one before, and the recorded gap."""
    found: list[Workload] = []
    for own in by_session(turns):
        longest: list[str] = []
        free_s = 0.0
        for number, turn in enumerate(own):
            pages = turn.page_hashes or []
            shared = sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(longest, pages)))  # noqa: B905
            gap_s = max(0.0, turn.arrival_s - free_s) if number else None
            found.append(msgspec.structs.replace(turn, gap_s=gap_s))
            free_s = turn.arrival_s + _alone_s(turn, shared * turn.page_tokens, cost)
            longest = max(longest, pages, key=len)
    return sorted(found, key=lambda turn: turn.arrival_s)


def _alone_s(turn: Workload, cached: int, cost: StepCost) -> float:
    tokens = max(1, turn.input_tokens - cached)
    context = turn.input_tokens + turn.output_tokens // 2
    prefill_s = cost.of(tokens, pairs(turn.input_tokens - tokens, tokens), 0, 0)
    return prefill_s + (turn.output_tokens - 1) * cost.of(0, 0, 1, context)


def demand_tokens(turns: Sequence[Workload]) -> int:
    """Return the largest sum, over time, of the contexts of sessions between their first and last turn."""
    changes: list[tuple[float, int]] = []
    for own in by_session(turns):
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
        Workload(arrival_s=at, max_tokens=output, output_tokens=output, own_tokens=OTHER_INPUT_TOKENS) for at in times
    ]


def summary(run: Run) -> tuple[float, float, float, float]:
    """Return the mean time that a session waits and its whole time, the cached share, and the others' p99 TTFT."""
    waits: dict[str, float] = collections.defaultdict(float)
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    cached = tokens = 0
    first_s: list[float] = []
    for one in run.outcomes:
        name = one.request.session
        if not name:
            first_s.append(one.first_token_s - one.arrival_s)
            continue
        waits[name] += one.end_s - one.arrival_s
        begin[name] = min(begin.get(name, one.arrival_s), one.arrival_s)
        end[name] = max(end.get(name, 0.0), one.end_s)
        cached += one.cached_tokens
        tokens += one.request.input_tokens
    first_s.sort()
    whole_s = sum(end[name] - begin[name] for name in waits) / len(waits)
    p99_s = first_s[len(first_s) * 99 // 100] if first_s else 0.0
    return sum(waits.values()) / len(waits), whole_s, cached / tokens, p99_s


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--others", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", default="lpm-aging/lru,fcfs/lru,session/lru,lpm-aging/session,session/session")
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--preset", default="llama-8b-h100")
    asked = parser.parse_args()
    turns = repeated(asked.trace, asked.rate, asked.seed, asked.seconds)
    need, engine = demand_tokens(turns), preset(asked.preset)
    if not asked.recorded:
        turns = answered_first(turns, engine.cost)
    beside = others(asked.others, OTHERS_LAST * asked.seconds, asked.seed)
    requests = sorted([*turns, *beside], key=lambda one: one.arrival_s)
    small = sized_to(engine, int(asked.share * need))
    print(f"{len(turns)} turns, {len(requests)} requests; demand {need} tokens, pool {small.kv_tokens}")
    first: tuple[float, float] | None = None
    for way in ("all in the pool", *asked.ways.split(",")):
        is_whole = way == "all in the pool"
        order, _, strategy = (asked.ways.split(",")[0] if is_whole else way).partition("/")
        eviction: Any = strategy
        config = SchedulerConfig(
            schedule_policy=order, radix_eviction_policy=eviction, max_queued_requests=UNBOUNDED_QUEUE
        )
        run = simulate(requests, sized_to(engine, 20 * need) if is_whole else small, config)
        wait_s, whole_s, share, p99_s = summary(run)
        first = first if first or is_whole else (wait_s, whole_s)
        told = f" ({wait_s / first[0] - 1:+.3f}, {whole_s / first[1] - 1:+.3f})" if first else " " * 16
        held = f"   held {run.counters.get('session_held_turns', 0):.0f}"
        times = f"waits {wait_s:7.2f} s   whole {whole_s:7.2f} s{told}"
        print(f"{way:18} {times}   cached {share:.3f}   others' p99 TTFT {p99_s:.3f} s{held}", flush=True)


if __name__ == "__main__":
    main()
