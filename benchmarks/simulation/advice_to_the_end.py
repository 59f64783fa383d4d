"""Is the answer of `quartet advise`, found on windows, also the best when every configuration runs the whole trace?

    python -m benchmarks.simulation.advice_to_the_end TRACE [--first MINUTES] [--speed X] [--rate R] [--preset NAME]

Prints the answer, its throughput and p99 time to first token on the whole trace over those of the configuration that
the same criterion picks there, and every configuration.
"""

import argparse
import sys
from pathlib import Path

from quartet.simulator.advise import advise, ordered
from quartet.simulator.capacity import UNBOUNDED_QUEUE
from quartet.simulator.combinations import combinations
from quartet.simulator.presets import DEFAULT_PRESET, preset
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.simulator.trials import Bench
from quartet.wire.config import SchedulerConfig
from quartet.wire.lengths import AUTO_CHUNK


def main(argv: list[str]) -> int:
    """Compare the advice with the whole trace."""
    parser = argparse.ArgumentParser(description="advice against runs of the whole trace")
    parser.add_argument("trace")
    parser.add_argument("--first", type=float, default=0.0)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--preset", default=DEFAULT_PRESET)
    options = parser.parse_args(argv)
    asked = TraceOptions(first_minutes=options.first, speed=options.speed, rate=options.rate)
    requests = load_trace(Path(options.trace), asked)
    engine, config = preset(options.preset), SchedulerConfig(max_queued_requests=UNBOUNDED_QUEUE)
    advice = advise(requests, engine, config, AUTO_CHUNK)
    bench = Bench([requests], engine, AUTO_CHUNK, None, 0.0)
    found = ordered(bench.race(combinations(requests, config, engine.mixed_tokens), ordered, 2))
    best = found[0]
    answer = next(trial for trial in found if trial.flags == advice.flags)
    print(advice.reason)
    for name in ("output_tokens_per_s", "ttft_p99_s"):
        print(f"{name}: {answer.mean(name):.3f} of the answer, {best.mean(name):.3f} of the best ({best.flags})")
    for trial in found:
        print(f"{trial.mean('output_tokens_per_s'):9.1f} {trial.mean('ttft_p99_s'):9.3f} {trial.flags}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
