"""The two tables of the seeds in one command: shared prefixes by policy, and latency by priority.

    python -m benchmarks.simulation.seed_tables [--preset NAME] [--live] [--step-ms 20] [flags of quartet serve]

Prints claim and simulated value side by side. With --live the same requests also run on the real processes with the
simulated worker, whose steps take --step-ms each: `same, simulated` is then the simulation with that step time.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import msgspec

from quartet.simulator.capacity import capacity, fcfs
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import DEFAULT_PRESET, preset
from quartet.simulator.report import Report, make_report
from quartet.simulator.request import Workload
from quartet.simulator.scenarios import make_scenario
from quartet.wire.config import SchedulerConfig
from quartet.wire.lengths import AUTO_CHUNK
from scheduler_proc.core.step_cost import StepCost

POLICIES = ("fcfs", "lpm", "lpm-aging")
LIVE_REQUESTS, LIVE_INPUT, LIVE_OUTPUT, LIVE_SLOTS, LIVE_LOAD = 600, 128, 32, 8, 0.95


def live_priority(step_s: float) -> list[str]:
    """Return the parameters of the live run: LIVE_LOAD of what the slots can take when every step lasts `step_s`.

    That is measured, because prompts that come together share a step.
    """
    cost = StepCost(step_s, 0.0, 0.0, 0.0, 0.0)
    engine = msgspec.structs.replace(preset("smollm2-cpu"), cost=cost, is_cpu=False)
    shape = Workload(arrival_s=0.0, max_tokens=LIVE_OUTPUT, output_tokens=LIVE_OUTPUT, own_tokens=LIVE_INPUT)
    rate = LIVE_LOAD * capacity(engine, [shape] * LIVE_REQUESTS, fcfs(LIVE_SLOTS))
    given = {"requests": LIVE_REQUESTS, "input_tokens": LIVE_INPUT, "output_tokens": LIVE_OUTPUT, "rate": f"{rate:.3f}"}
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


def simulated(engine: SimulatedEngine, name: str, **settings: Any) -> Report:
    """Simulate a scenario with scheduling settings, seed 0."""
    scenario = make_scenario(name, engine, 0, {})
    config = SchedulerConfig(max_running_requests=scenario.max_running_requests, **settings)
    return make_report(simulate(scenario.requests, scenario.engine, config), scenario.engine, AUTO_CHUNK)


def live(name: str, policy: str, flags: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a scenario on the real processes; returns what was measured, and the same simulated."""
    command = [sys.executable, "-m", "benchmarks.serving.live_trace", name, "--compare", "--schedule-policy", policy]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line) if line.startswith("{") else {}
    return found["live"], found["simulated"]


def rag_table(engine: SimulatedEngine, worker: list[str]) -> None:
    """Print throughput and hit rate by policy."""
    print("\nShared prefixes: output tokens/s over fcfs, and hit rate\n")
    live_columns = " measured | same, simulated |" if worker else ""
    print(f"| policy | claim | simulated |{live_columns}\n|---|---|---|" + "---|---|" * bool(worker))
    base = simulated(engine, "rag", schedule_policy="fcfs")
    base_live = live("rag", "fcfs", worker) if worker else None
    for policy in POLICIES:
        report = simulated(engine, "rag", schedule_policy=policy)
        claim = "1" if policy == "fcfs" else ">= 1.8, >= 0.85"
        gain = report.output_tokens_per_s / base.output_tokens_per_s
        cells = [policy, claim, f"{gain:.2f}, {report.prefix_hit_rate:.3f}"]
        if base_live:
            for found, first in zip(live("rag", policy, worker), base_live, strict=True):
                gain = found["output_tokens_per_s"] / first["output_tokens_per_s"]
                cells.append(f"{gain:.2f}, {found['prefix_hit_rate']:.3f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def priority_table(engine: SimulatedEngine, worker: list[str], step_s: float) -> None:
    """Print p99 end to end of each class with priority scheduling over that without."""
    print("\nPriority: p99 end to end with priority scheduling over that without\n")
    live_columns = " measured | same, simulated |" if worker else ""
    print(f"| class | claim | simulated |{live_columns}\n|---|---|---|" + "---|---|" * bool(worker))
    runs = [simulated(engine, "priority", enable_priority_scheduling=on) for on in (False, True)]
    measured = []
    if worker:
        flags = [*live_priority(step_s), *worker]
        measured = [live("priority", "fcfs", [*flags, *on]) for on in ([], ["--enable-priority-scheduling"])]
    for name, claim in (("high", "<= 0.4"), ("low", "<= 1.33")):
        off, on = (run.e2e_s_by_class[name].p99 or 1.0 for run in runs)
        cells = [name, claim, f"{on / off:.2f}"]
        for side in range(2) if measured else ():
            before, after = (pair[side]["e2e_s_by_class"][name]["p99"] for pair in measured)
            cells.append(f"{after / before:.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def main(argv: list[str]) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="the seeds' two tables")
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--step-ms", type=float, default=20.0)
    options, flags = parser.parse_known_args(argv)
    engine = preset(options.preset)
    worker = ["--simulated-worker", "--simulated-step-ms", f"{options.step_ms:g}", *flags] if options.live else []
    rag_table(engine, worker)
    priority_table(engine, worker, options.step_ms / 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
