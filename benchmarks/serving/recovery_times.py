"""Seconds from SIGKILL or SIGSTOP of a process to the next token, over HTTP, by role.

    python -m benchmarks.serving.recovery_times [--launches 8] [--streams 4] [--json FILE]
    python -m benchmarks.plots.recovery_plot

Each launch, of SmolLM2 in fp32 on the CPU, of the same with a standby, and of the simulated worker, has every role
killed once and stopped once, while streams run; SIGSTOP is a hang, which the supervisor must find first. The figure of
a fault is the end of the longest pause of the last stream; that of the tokenizer, which running streams do not need, is
the first token of a request that is sent at once after it. `bar_s` is what must hold at the 95th percentile, without
the time to compute the prompts and outputs again.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.report import describe_host, write_json
from benchmarks.serving.recovery_client import TimedStream
from benchmarks.serving.served import get, served

LAUNCHES = {
    "SmolLM2-135M, fp32, CPU": ("--device", "cpu", "--dtype", "float32", "--max-total-tokens", "8192"),
    "SmolLM2-135M, --standby": (*("--device", "cpu", "--dtype", "float32", "--max-total-tokens", "8192", "--standby"),),
    "simulated worker": ("--simulated-worker", "--simulated-step-ms", "5"),
}
STANDBY_BAR_S = 1.0
BARS_S = {"tokenizer": 1.0, "detok": 1.0, "scheduler": 1.0, "worker": 2.5}
HANG_S = 2.0
FAULTS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}
PROMPT = "Write a long story about a lighthouse keeper who counts ships. "
MAX_TOKENS = 1500
EVENTS_BEFORE, EVENTS_AFTER = 8, 4
SETTLE_S = 1.0


def rows(url: str) -> dict[str, dict[str, Any]]:
    """Return the process table by role."""
    return {row["role"]: row for row in json.loads(get(url + "/topology"))["processes"]}


def wait_until_ready(url: str, role: str, restarts: int) -> None:
    """Return when the role has been restarted and every process is ready."""
    deadline_s = time.monotonic() + 60.0
    while time.monotonic() < deadline_s:
        found = rows(url)
        if found[role]["restarts"] > restarts and all(row["state"] == "ready" for row in found.values()):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{role} has not come back")


def fault(url: str, role: str, number: signal.Signals, streams: int) -> float:
    """Send a signal to a process while streams run; returns the seconds to the next token of the last stream."""
    running = [TimedStream(url, f"{i}: {PROMPT}", MAX_TOKENS) for i in range(streams)]
    try:
        for stream in running:
            stream.wait(EVENTS_BEFORE)
        row = rows(url)[role]
        start_s = time.monotonic()
        os.kill(row["pid"], number)
        if role == "tokenizer":
            running.append(TimedStream(url, f"after the fault: {PROMPT}", MAX_TOKENS))
            running[-1].wait(1, start_s)
            seconds = running[-1].times_s[0] - start_s
            wait_until_ready(url, role, row["restarts"])
        else:
            wait_until_ready(url, role, row["restarts"])
            ready_s = time.monotonic()
            for stream in running:
                stream.wait(EVENTS_AFTER, ready_s)
            seconds = max(stream.pause_s(start_s) for stream in running)
    finally:
        for stream in running:
            stream.close()
    time.sleep(SETTLE_S)
    return seconds


def percentile(samples: list[float], share: float) -> float:
    """Return the smallest sample that at least that share of them does not exceed."""
    return sorted(samples)[max(0, -int(-share * len(samples) // 1) - 1)]


def summary(samples: list[float], bar_s: float) -> dict[str, Any]:
    """Return what is reported of one role and fault."""
    return {
        "p50_s": round(statistics.median(samples), 2),
        "p95_s": round(percentile(samples, 0.95), 2),
        "bar_s": bar_s,
        "samples_s": [round(one, 3) for one in samples],
    }


def measure(flags: tuple[str, ...], launches: int, streams: int) -> dict[str, dict[str, Any]]:
    """Return the summary of each fault of each role."""
    samples: dict[str, dict[str, list[float]]] = {role: {name: [] for name in FAULTS} for role in BARS_S}
    for _ in range(launches):
        with served("--restart-limit", "100", *flags) as url:
            for name, number in FAULTS.items():
                for role in BARS_S:
                    seconds = fault(url, role, number, streams)
                    samples[role][name].append(seconds)
                    print(f"{name} {role}: {seconds:.2f} s", file=sys.stderr)
    bars_s = {**BARS_S, **({"worker": STANDBY_BAR_S} if "--standby" in flags else {})}
    return {
        role: {
            name: summary(found, bar_s + (HANG_S if name == "SIGSTOP" else 0.0))
            for name, found in samples[role].items()
        }
        for role, bar_s in bars_s.items()
    }


def table(models: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Return the results as a table."""
    lines = ["| launch | process | fault | p50, s | p95, s | bar, s |", "| --- | --- | --- | --- | --- | --- |"]
    for model, roles in models.items():
        for role, faults in roles.items():
            for name, found in faults.items():
                figures = f"{found['p50_s']:.2f} | {found['p95_s']:.2f} | {found['bar_s']:.1f}"
                lines.append(f"| {model} | {role} | {name} | {figures} |")
    return lines


def slowness() -> dict[str, float]:
    """Return the load, and seconds of wall clock and processor that `import torch` takes: most of a worker's start."""
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    seconds, after = time.monotonic() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"load": os.getloadavg()[0], "import_torch_s": round(seconds, 2), "import_torch_cpu_s": round(cpu_s, 2)}


def main() -> int:
    """Measure all launches; print a table, and write JSON."""
    parser = argparse.ArgumentParser(description="seconds from a fault to the next token")
    parser.add_argument("--launches", type=int, default=8)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    machine = [slowness()]
    models = {name: measure(flags, options.launches, options.streams) for name, flags in LAUNCHES.items()}
    machine.append(slowness())
    command = f"python -m benchmarks.serving.recovery_times --launches {options.launches} --streams {options.streams}"
    results = {"command": command, **describe_host(), "cores": os.cpu_count(), "machine": machine, "models": models}
    write_json(results, options.json)
    print("\n".join([*table(models), f"the machine before and after: {machine}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
