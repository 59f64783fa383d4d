"""How much of prompts a model with recurrent states finds cached, beside one with full attention, on scenario rag.

    python -m benchmarks.simulation.state_checkpoints [--state-tokens 2364] [--share 0.1] [--seed 0]
                                                      [--policies fcfs,lpm-aging] [--preset NAME]

Documents of several lengths, each in pools that hold several of them. The checkpoints take `--share` of the pool on
top of it; one takes as much memory as the KV of `--state-tokens`: 2,364 in Qwen3.5-27B (48 layers with states of 3.2 MB
in all, 16 with 4 KB of bfloat16 a token). A last line for each policy has as many checkpoints as documents.

Prints pool, checkpoints, the share of prompt tokens that was cached with full attention and with states, and their
ratio; then the time to the last answer, with full attention, with states, and with states that are never saved.
"""

import argparse

import msgspec

from quartet.simulator.capacity import UNBOUNDED_QUEUE
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import preset
from quartet.simulator.scenarios import Scenario, rag
from quartet.wire.config import SchedulerConfig

CONTEXT_TOKENS = 262_144
GROUPS = 8
SIZES = ((2048, 2.5), (8192, 2.5), (8192, 5.0), (32768, 2.5), (32768, 5.0), (2048, 100.0))
"""Tokens of a document, and how many of them the pool holds."""


def measure(scenario: Scenario, policy: str, checkpoints: int) -> tuple[float, float]:
    """Return the share of prompt tokens that was cached, and the seconds to the last answer."""
    engine = msgspec.structs.replace(scenario.engine, checkpoints=checkpoints)
    running = scenario.max_running_requests
    config = SchedulerConfig(schedule_policy=policy, max_running_requests=running, max_queued_requests=UNBOUNDED_QUEUE)
    run = simulate(scenario.requests, engine, config)
    cached = run.counters["cached_tokens"] / run.counters["input_tokens"]
    return cached, max(outcome.end_s for outcome in run.outcomes)


def row(engine: SimulatedEngine, seed: int, policy: str, tokens: int, held: float, checkpoints: int | float) -> None:
    """Measure and print one size; `checkpoints` below 1 are those that one token of the pool gives."""
    scenario = rag(engine, seed, groups=GROUPS, prefix_tokens=tokens, held_prefixes=held)
    pool = scenario.engine.kv_tokens
    count = int(pool * checkpoints) if checkpoints < 1 else int(checkpoints)
    full, full_s = measure(scenario, policy, -1)
    own, own_s = measure(scenario, policy, count)
    _, none_s = measure(scenario, policy, 0)
    print(
        f"{policy:10} {tokens:6} x {held:5.1f}  {pool:7} tokens {count:3} checkpoints   "
        f"{full:.3f} {own:.3f} ratio {own / full if full else 0:.2f}   {full_s:6.2f} {own_s:6.2f} {none_s:6.2f} s",
        flush=True,
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-tokens", type=int, default=2364)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policies", default="fcfs,lpm-aging")
    parser.add_argument("--preset", default="llama-8b-h100")
    asked = parser.parse_args()
    engine = msgspec.structs.replace(preset(asked.preset), context_length=CONTEXT_TOKENS)
    for policy in asked.policies.split(","):
        for tokens, held in SIZES:
            row(engine, asked.seed, policy, tokens, held, asked.share / asked.state_tokens)
        row(engine, asked.seed, policy, 2048, 2.5, GROUPS)


if __name__ == "__main__":
    main()
