"""Step orders on public traces near capacity: what each does to the first token and to the gaps between tokens.

    python -m benchmarks.simulation.slack_batches TRACE... [--minutes 10] [--load 0.8 0.95] [--target-ms 50]
                                                  [--preset llama-8b-h100]

Prints a Markdown table for each trace and load. Capacity is what the engine finishes a second when the same requests
come at once; the trace is scaled in time to a share of it.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from quartet.simulator.capacity import UNBOUNDED_QUEUE, at_speed, fcfs, speed_for
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import DEFAULT_PRESET, preset
from quartet.simulator.report import make_report
from quartet.simulator.request import Workload
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.wire.config import SchedulerConfig
from quartet.wire.lengths import AUTO_CHUNK

FIXED_CHUNK = 1024
ORDERS: dict[str, dict[str, Any]] = {
    "mixed, the default": {},
    "separate steps": {"enable_mixed_chunk": False},
    "decode_first": {"step_order": "decode_first"},
    f"mixed chunks of {FIXED_CHUNK}": {"enable_mixed_chunk": True, "chunked_prefill_size": FIXED_CHUNK},
    "slack": {"step_order": "slack"},
}


def row(requests: list[Workload], engine: SimulatedEngine, target_ms: float, settings: dict[str, Any]) -> list[float]:
    """Return p50 and p99 time to first token, p99 gap, share of gaps above the target, output tokens a second."""
    has_target = "step_order" in settings
    config = SchedulerConfig(
        max_queued_requests=UNBOUNDED_QUEUE, tbt_target_ms=target_ms if has_target else 0.0, **settings
    )
    run = simulate(requests, engine, config)
    report = make_report(run, engine, AUTO_CHUNK)
    gaps = [pair for found in run.gaps.values() for pair in zip(found.seconds, found.counts, strict=True)]
    late = sum(count for seconds, count in gaps if seconds > target_ms / 1e3) / sum(count for _, count in gaps)
    first, gap_s = report.ttft_s, report.gap_s.p99
    return [first.p50 or 0.0, first.p99 or 0.0, gap_s or 0.0, late, report.output_tokens_per_s]


def main(argv: list[str]) -> int:
    """Run every step order on every trace at every load and print the tables."""
    parser = argparse.ArgumentParser(description="step orders on traces near capacity")
    parser.add_argument("traces", nargs="+", metavar="TRACE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--load", type=float, nargs="*", default=[0.8, 0.95])
    parser.add_argument("--target-ms", type=float, default=50.0)
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    options = parser.parse_args(argv)
    engine = preset(options.preset)
    for trace in options.traces:
        requests = load_trace(Path(trace), TraceOptions(first_minutes=options.minutes))
        full_speed = speed_for(1.0, engine, requests, fcfs())
        for load in options.load:
            speed = load * full_speed
            scaled = at_speed(requests, speed)
            print(f"\n{Path(trace).name}: {len(requests)} requests at {load:.0%} of capacity, speed {speed:.2f}\n")
            print(f"| step order | TTFT p50 | TTFT p99 | gap p99 | gaps > {options.target_ms:g} ms | output tokens/s |")
            print("|---|---|---|---|---|---|")
            for name, settings in ORDERS.items():
                p50, p99, gap, late, speed_found = row(scaled, engine, options.target_ms, settings)
                cells = f"{p50:.2f} s | {p99:.2f} s | {gap * 1e3:.0f} ms | {late:.2%} | {speed_found:.0f}"
                print(f"| {name} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
