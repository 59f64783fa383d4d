"""What the upgrades of memory gain: reservation observed, retraction that keeps KV, the place of retracted requests.

    python -m benchmarks.simulation.memory_upgrades TRACE [REQUESTS]

TRACE is a file that `quartet simulate --trace` reads, of which the first REQUESTS (1,500) are taken, twenty times as
fast as they came, each client asking for 4,096 tokens. Prints a line for each run, and each bound. Takes minutes.
"""

import random
import sys
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from quartet.simulator.capacity import UNBOUNDED_QUEUE, sized_to
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import preset
from quartet.simulator.record import Run
from quartet.simulator.report import make_report
from quartet.simulator.request import Workload
from quartet.simulator.scenarios import make_scenario
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.wire.config import SchedulerConfig
from quartet.wire.lengths import AUTO_CHUNK

ENGINE = preset("llama-8b-h100")
KV_TOKENS = 131_072
MAX_TOKENS = 4096
SLOTS = 2048
SEEDS = (0, 1, 2, 3, 4)


def run(label: str, requests: list[Workload], engine: SimulatedEngine, slots: int = SLOTS, **settings: Any) -> Run:
    """Simulate and print a line."""
    config = SchedulerConfig(max_running_requests=slots, max_queued_requests=UNBOUNDED_QUEUE, **settings)
    found = simulate(requests, replace(engine, max_slots=slots), config)
    report = make_report(found, engine, AUTO_CHUNK)
    print(
        f"{label:34} {report.output_tokens_per_s:6.0f} out/s running {report.mean_running:5.1f} retracted "
        f"{retracted(found):.2%} most {most(found)} recomputed {report.recomputed_tokens:5} "
        f"longest pause {report.gap_s.max:5.2f} s",
        flush=True,
    )
    return found


def retracted(found: Run) -> float:
    """Return the share of requests that were retracted."""
    return sum(outcome.admissions > 1 for outcome in found.outcomes) / len(found.outcomes)


def most(found: Run) -> int:
    """Return how often one request was retracted at most."""
    return max(outcome.admissions for outcome in found.outcomes) - 1


def bar(text: str, value: float, holds: bool) -> None:
    """Print a bound and whether it holds."""
    print(f"    {'holds ' if holds else 'MISSED'} {text}: {value:.4g}", flush=True)


def mean_running(found: Run) -> float:
    """Return how many requests ran while any did."""
    return found.timeline.running_seconds / found.timeline.busy_s


def observed(requests: list[Workload]) -> None:
    """All clients ask for MAX_TOKENS, and for what they get."""
    engine = sized_to(ENGINE, KV_TOKENS)
    asking = [replace(one, max_tokens=MAX_TOKENS) for one in requests]
    ratio, found = (run(f"4,096 asked, {name}", asking, engine, reservation=name) for name in ("ratio", "observed"))
    gain = mean_running(found) / mean_running(ratio)
    bar("running requests over ratio's, at least 1.3", gain, gain >= 1.3)
    bar("share retracted, at most 0.01", retracted(found), retracted(found) <= 0.01)
    exact = [replace(one, max_tokens=one.output_tokens) for one in requests]
    ratio, found = (run(f"length asked, {name}", exact, engine, reservation=name) for name in ("ratio", "observed"))
    bar("throughput over ratio's, at least 0.98", ratio.end_s / found.end_s, ratio.end_s / found.end_s >= 0.98)


def shift() -> None:
    """Outputs of a mean of 200, then of 1,000."""
    rng = random.Random(0)
    means = [200] * 600 + [1000] * 1600
    requests = [
        Workload(
            arrival_s=number / 50,
            max_tokens=MAX_TOKENS,
            output_tokens=max(1, min(MAX_TOKENS, int(mean * rng.lognormvariate(-0.32, 0.8)))),
            own_tokens=512,
        )
        for number, mean in enumerate(means)
    ]
    found = run("mean 200, then 1,000", requests, sized_to(ENGINE, KV_TOKENS), reservation="observed", requeue="age")
    ends = sorted(found.outcomes, key=lambda outcome: outcome.end_s)
    first = next(at for at, outcome in enumerate(ends) if outcome.arrival_s >= 600 / 50)
    late = ends[first + 1000 :]
    share = sum(outcome.admissions > 1 for outcome in late) / max(1, len(late))
    bar("share retracted after 1,000 ends, at most 0.01", share, bool(late) and share <= 0.01)


def kept() -> None:
    """Scenario overload: retraction as it is, by place, and with its KV kept."""
    totals = dict[str, list[Run]]()
    ways: dict[str, dict[str, Any]] = {
        "tail": {},
        "head": {"requeue": "head"},
        "age": {"requeue": "age"},
        "keeps KV": {"retraction_keeps_kv": True},
    }
    for seed in SEEDS:
        scenario = make_scenario("overload", ENGINE, seed, {})
        for name, settings in ways.items():
            found = run(
                f"overload {seed}, {name}",
                scenario.requests,
                scenario.engine,
                scenario.max_running_requests,
                **settings,
            )
            totals.setdefault(name, []).append(found)
    tokens = {name: sum(one.recomputed_tokens for run in runs for one in run.outcomes) for name, runs in totals.items()}
    share = tokens["keeps KV"] / tokens["tail"]
    bar("recomputed tokens over those of today, at most 0.25", share, share <= 0.25)
    speeds = [sum(1 / one.end_s for one in totals[name]) for name in ("keeps KV", "tail")]
    bar("throughput over that of today, at least 1", speeds[0] / speeds[1], speeds[0] >= speeds[1])
    worst = max(map(most, totals["keeps KV"]))
    bar("retractions of one request, at most 3", worst, worst <= 3)


def main() -> None:
    """Run all of it."""
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1500
    kept()
    observed(load_trace(Path(sys.argv[1]), TraceOptions(speed=20.0))[:count])
    shift()


if __name__ == "__main__":
    main()
