"""The tables of "the choice by traffic" in docs/scheduling.md: public traces under the settings that compete for each.

    python -m benchmarks.simulation.choice_tables FOLDER [--only NAME ...] [--preset llama-8b-h200] [--processes 2]

FOLDER holds the traces; a scenario names the file. Each trace is scaled in time to a share of capacity, what the engine
finishes a second with fcfs when the same requests come at once, and all settings get the same requests. Prints a
Markdown table for each, with the command that gives a row. Takes about five minutes of processor time.
"""

import argparse
import concurrent.futures
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.serving.live_trace import config_of
from benchmarks.simulation.tenant_fairness import heaviest, times_as_often
from quartet.simulator.capacity import UNBOUNDED_QUEUE, at_speed, fcfs, speed_for
from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.report import make_report, summarise
from quartet.simulator.request import Workload
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.wire.lengths import AUTO_CHUNK


class Scenario(NamedTuple):
    """A trace at a load, and what competes on it.

    Args:
        file: below FOLDER.
        options: `first_minutes`, `rate` and `max_tokens` of TraceOptions.
        load: share of capacity; 0: all requests come at once.
        ways: flags of `quartet serve`.
        crowd: how many times as often the tenant with the most tokens comes, after the trace is scaled.
    """

    file: str
    options: TraceOptions
    load: float
    ways: tuple[str, ...]
    crowd: int = 1


TENANTS = "--tenant-weights default=1"
SLACK = "--tbt-target-ms 50 --step-order"
POLICIES = ("fcfs", "lpm", "lpm-aging", "hrrn", "shortest-prefill-first")
MOONCAKE = "mooncake_fast25_conversation_first30min.csv"
SCENARIOS = {
    "rag": Scenario(
        "mooncake_fast25_synthetic.csv",
        TraceOptions(first_minutes=8),
        1.2,
        (*(f"--schedule-policy {name}" for name in POLICIES), "--schedule-policy lpm-aging --max-running-requests 32"),
    ),
    "chat": Scenario(
        "azure_llm_2023_conv.csv",
        TraceOptions(first_minutes=16),
        0.85,
        ("", "--no-enable-mixed-chunk", f"{SLACK} decode_first", f"{SLACK} slack"),
    ),
    "tenants": Scenario(
        "servegen_m-small_day9_clients.json",
        TraceOptions(first_minutes=0.06),
        0.5,
        ("", TENANTS, "--schedule-policy hrrn", f"--schedule-policy hrrn {TENANTS}"),
        crowd=10,
    ),
    "long outputs": Scenario(
        MOONCAKE,
        TraceOptions(first_minutes=6, max_tokens=4096),
        1.0,
        tuple(f"--reservation {name}" for name in ("full", "ratio", "blocks", "observed")),
    ),
    "batch": Scenario(
        "arxiv_summarization_lengths.csv",
        TraceOptions(first_minutes=1, rate=30.0),
        0.0,
        ("", "--no-enable-mixed-chunk", "--schedule-policy lof", "--schedule-policy shortest-prefill-first",
         f"{SLACK} slack"),
    ),
}  # fmt: skip


def requests_of(scenario: Scenario, folder: Path, engine_name: str) -> tuple[list[Workload], float]:
    """Return the requests as they arrive, and how many times as fast as in the trace."""
    requests = load_trace(folder / scenario.file, scenario.options)
    if not scenario.load:
        return [msgspec.structs.replace(one, arrival_s=0.0) for one in requests], 0.0
    speed = speed_for(scenario.load, preset(engine_name), requests, fcfs())
    requests = at_speed(requests, speed)
    return times_as_often(requests, heaviest(requests), scenario.crowd) if scenario.crowd > 1 else requests, speed


def row(requests: Sequence[Workload], flags: str, engine_name: str) -> list[str]:
    """Return a line of the table."""
    engine = preset(engine_name)
    config = msgspec.structs.replace(config_of(flags.split()).scheduler, max_queued_requests=UNBOUNDED_QUEUE)
    run = simulate(requests, engine, config)
    report = make_report(run, engine, AUTO_CHUNK)
    cells = [f"with `{flags}`" if flags else "the defaults", f"{report.output_tokens_per_s:.0f}"]
    cells += [f"{report.total_tokens_per_s:.0f}", f"{report.prefix_hit_rate:.2f}"]
    cells += [f"{seconds or 0.0:.2f} s" for seconds in (report.ttft_s.p50, report.ttft_s.p99)]
    if len({one.tenant for one in requests}) > 1:
        heavy = heaviest(requests)
        light = [one for one in run.outcomes if one.is_finished and one.request.tenant != heavy]
        first = summarise(one.first_token_s - one.arrival_s for one in light)
        cells[-1] += f"; others' {first.p99 or 0.0:.2f} s"
    gap = report.gap_s
    return [*cells, f"{1e3 * (gap.p99 or 0.0):.0f} ms, {gap.max or 0.0:.2f} s", f"{report.duration_s:.0f} s",
            f"{report.mean_running:.0f}", str(report.retractions)]  # fmt: skip


COLUMNS = (
    "settings",
    "output tokens/s",
    "all tokens/s",
    "hit rate",
    "TTFT p50",
    "p99",
    "gap p99, longest",
    "duration",
    "running",
    "retracted",
)


def main(argv: Sequence[str]) -> int:
    """Print every table."""
    parser = argparse.ArgumentParser(description="the choice by traffic")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--preset", default="llama-8b-h200")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(options.processes, context) as pool:
        named = {name: SCENARIOS[name] for name in options.only}
        made = {name: pool.submit(requests_of, one, options.folder, options.preset) for name, one in named.items()}
        rows = {
            name: [pool.submit(row, made[name].result()[0], flags, options.preset) for flags in one.ways]
            for name, one in named.items()
        }
        for name, one in named.items():
            requests, speed = made[name].result()
            asked = one.options
            flags = [f"--first {asked.first_minutes:g}"] + [f"--rate {asked.rate:g}"] * bool(asked.rate)
            flags += [f"--assume-max-tokens {asked.max_tokens}"] * bool(asked.max_tokens)
            arrival = f"{one.load:.0%} of capacity, --speed {speed:.3f}" if speed else "all at once"
            crowd = f", the largest tenant {one.crowd} times as often" if one.crowd > 1 else ""
            print(f"\n{name}: {one.file}, {' '.join(flags)}: {len(requests)} requests, {arrival}{crowd}\n")
            print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
            for found in rows[name]:
                print("| " + " | ".join(found.result()) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
