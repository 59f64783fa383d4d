"""The simulated figures of docs/scheduling.md: each scenario under the settings that it compares, and its bounds.

    python -m benchmarks.simulation.scheduling_scenarios [OUT.json] [PLOTS_DIR]

Prints a line for each run and each bound; writes the reports as JSON and the plots. Takes about three minutes.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import msgspec

from quartet.simulator.driver import simulate
from quartet.simulator.plots import save_plots
from quartet.simulator.presets import preset
from quartet.simulator.report import Report, make_report
from quartet.simulator.scenarios import make_scenario
from quartet.wire.config import SchedulerConfig
from quartet.wire.lengths import AUTO_CHUNK

SEEDS = (0, 1, 2, 3, 4)
ENGINE = preset("llama-8b-h100")


class Runs:
    """Runs scenarios, prints and keeps their reports, and plots the first seed if a folder is given."""

    def __init__(self, plots: Path | None) -> None:
        self._plots = plots
        self.reports: dict[str, Any] = {}
        self.bars: list[tuple[str, bool]] = []

    def run(self, name: str, label: str, seed: int, given: dict[str, str] | None = None, **settings: Any) -> Report:
        """Simulate a scenario with scheduling settings; returns its report."""
        scenario = make_scenario(name, ENGINE, seed, given or {})
        config = SchedulerConfig(max_running_requests=scenario.max_running_requests, **settings)
        run = simulate(scenario.requests, scenario.engine, config)
        report = make_report(run, scenario.engine, AUTO_CHUNK)
        title = f"{name}, {label}, seed {seed}"
        self.reports[title] = msgspec.to_builtins(report)
        print(
            f"{title:42} {report.output_tokens_per_s:7.0f} out/s {report.total_tokens_per_s:7.0f} tok/s "
            f"hit {report.prefix_hit_rate:.3f} running {report.mean_running:5.1f} retracted {report.retractions} "
            f"preempted {report.preemptions} recomputed {report.recomputed_tokens}",
            flush=True,
        )
        if self._plots and seed == SEEDS[0]:
            save_plots(run, scenario.engine, self._plots / f"{name}-{label}".replace(" ", "-"), title)
        return report

    def bar(self, text: str, value: float, holds: bool) -> None:
        """Print and keep a bound and whether it holds."""
        self.bars.append((f"{text}: {value:.3f}", holds))
        print(f"    {'holds ' if holds else 'MISSED'} {text}: {value:.3f}", flush=True)


def rag(runs: Runs, seed: int) -> None:
    """Point 3: shared prefixes."""
    fcfs = runs.run("rag", "fcfs", seed, schedule_policy="fcfs")
    runs.run("rag", "random", seed, schedule_policy="random", random_seed=seed)
    lpm = runs.run("rag", "lpm", seed, schedule_policy="lpm")
    aging = runs.run("rag", "lpm-aging", seed, schedule_policy="lpm-aging")
    gain = lpm.output_tokens_per_s / fcfs.output_tokens_per_s
    runs.bar("lpm over fcfs, output throughput, at least 1.8", gain, gain >= 1.8)
    runs.bar("lpm hit rate, at least 0.85", lpm.prefix_hit_rate, lpm.prefix_hit_rate >= 0.85)
    kept = aging.output_tokens_per_s / lpm.output_tokens_per_s
    runs.bar("lpm-aging over lpm, output throughput, at least 0.95", kept, kept >= 0.95)


def deep_queues(runs: Runs) -> None:
    """Shared prefixes with many requests waiting at once."""
    for count in ("400", "1000", "4000"):
        settings: dict[str, Any] = {"max_queued_requests": 8192}
        lpm, aging = (
            runs.run("rag", f"{policy}, {count}", 0, {"requests": count}, schedule_policy=policy, **settings)
            for policy in ("lpm", "lpm-aging")
        )
        kept = aging.output_tokens_per_s / lpm.output_tokens_per_s
        runs.bar(f"lpm-aging over lpm with {count} requests, output throughput, at least 0.95", kept, kept >= 0.95)


def priority(runs: Runs, seed: int) -> None:
    """Point 4: two classes."""
    off = runs.run("priority", "off", seed).e2e_s_by_class
    on = runs.run("priority", "on", seed, enable_priority_scheduling=True).e2e_s_by_class
    eager = runs.run("priority", "preempting", seed, {"high": "100"}, enable_priority_scheduling=True).e2e_s_by_class
    for name, found in (("on", on), ("preempting", eager)):
        high, low = ((found[kind].p99 or 0) / (off[kind].p99 or 1) for kind in ("high", "low"))
        if found is on:
            runs.bar("p99 of high over its value without priority, at most 0.4", high, high <= 0.4)
            runs.bar("p99 of low over its value without priority, at most 1.33", low, low <= 1.33)
        else:
            print(f"    {name}: p99 of high and low over their values without: {high:.3f}, {low:.3f}")


def overload(runs: Runs, seed: int) -> None:
    """Point 5: reservation by ratio against full reservation, and conservativeness."""
    full = runs.run("overload", "full", seed, reservation="full")
    ratio = runs.run("overload", "ratio", seed)
    for value in (0.3, 0.1):
        runs.run("overload", f"ratio at {value}", seed, schedule_conservativeness=value)
    running = ratio.mean_running / full.mean_running
    speed = ratio.output_tokens_per_s / full.output_tokens_per_s
    runs.bar("ratio over full, requests running, at least 1.3", running, running >= 1.3)
    runs.bar("ratio over full, output throughput, at least 1.2", speed, speed >= 1.2)


def cold_start(runs: Runs) -> None:
    """Point 6: one cold request among hot ones; the scenario has no randomness."""
    for arrivals in ("1", "2", "4"):
        given = {"arrivals_per_admission": arrivals, "requests": "1200"}
        for policy in ("lpm", "hrrn", "lpm-aging"):
            report = runs.run("cold-start", f"{policy} at {arrivals}", 0, given, schedule_policy=policy)
            worst = report.overtaken_by_class["cold"].max or 0.0
            waited_s = report.ttft_s_by_class["cold"].max or 0.0
            print(
                f"    the cold request waits {waited_s:.2f} of {report.duration_s:.2f} s, "
                f"overtaken in {worst:.0f} passes"
            )
            if policy == "lpm-aging":
                # 4.2: U / aging_share of work; a pass admits at least one request of 64 tokens and 16 outputs.
                bound = math.ceil((2112 + 24 * 64) / SchedulerConfig().aging_share / (64 + 4 * 16))
                runs.bar(f"{policy} at {arrivals}, passes that overtake it, at most {bound}", worst, worst <= bound)


def long_prompts(runs: Runs) -> None:
    """Point 7: streams beside prompts of 65,536 tokens."""
    free = runs.run("long-prompts", "none", 0, {"requests": "0"})
    base = runs.run("long-prompts", "prefill_first", 0)
    for target_ms in (20.0, 50.0, 100.0):
        settings: dict[str, Any] = {"step_order": "decode_first", "tbt_target_ms": target_ms}
        report = runs.run("long-prompts", f"decode_first {target_ms:.0f} ms", 0, **settings)
        for kind, one in (("prefill_first", base), ("decode_first", report)):
            gap, first = one.gap_s_by_class["stream"], one.ttft_s_by_class["long"]
            print(f"    {kind}: stream gap p99 {gap.p99} s, max {gap.max} s; prompts' first token {first.mean} s")
        free_s = free.gap_s_by_class["stream"].p99 or 0.0
        bound_s = 2 * free_s + max(target_ms / 1e3 - free_s, 0.0)
        gap_s = report.gap_s_by_class["stream"].p99 or 0.0
        runs.bar(f"p99 gap of streams in s, at most {bound_s:.4f}", gap_s, gap_s <= bound_s)
        kept = report.total_tokens_per_s / base.total_tokens_per_s
        runs.bar("throughput over prefill_first, at least 0.95", kept, kept >= 0.95)


def main(arguments: list[str]) -> int:
    """Run everything; returns 1 if a bound is missed."""
    runs = Runs(Path(arguments[1]) if len(arguments) > 1 else None)
    for seed in SEEDS:
        rag(runs, seed)
        priority(runs, seed)
        overload(runs, seed)
    deep_queues(runs)
    cold_start(runs)
    long_prompts(runs)
    if arguments:
        bars = [{"bar": text, "holds": holds} for text, holds in runs.bars]
        Path(arguments[0]).write_text(json.dumps({"bars": bars, "runs": runs.reports}, indent=1) + "\n")
    return int(not all(holds for _, holds in runs.bars))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
