"""Is the answer of `quartet advise`, found on windows, also the best when every configuration runs the whole trace?

    python -m benchmarks.simulation.advice_to_the_end TRACE [--first MINUTES] [--speed X] [--rate R] [--preset NAME]

Prints the answer, its throughput and p99 time to first token on the whole trace over those of the configuration that
the same criterion picks there, and every configuration that the advice tried.
"""

import argparse
import os
import sys
from pathlib import Path

from quartet.simulator.advise import LONG_REQUESTS, Advice, advise, ordered
from quartet.simulator.capacity import UNBOUNDED_QUEUE
from quartet.simulator.combinations import combinations
from quartet.simulator.driver import SimulatedEngine
from quartet.simulator.presets import DEFAULT_PRESET, preset
from quartet.simulator.request import Workload
from quartet.simulator.trace_source import TraceOptions, load_trace
from quartet.simulator.trials import Bench, Trial
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
    began_s = _processor_s()
    advice = advise(requests, engine, config, AUTO_CHUNK)
    advice_s = _processor_s() - began_s
    found = ordered(_to_the_end(requests, engine, config, advice))
    best = found[0]
    answer = next(trial for trial in found if trial.flags == advice.flags)
    print(f"{len(requests)} requests; the advice took {advice_s:.0f} s of processor time, on two processors half of it")
    print(advice.reason)
    for name in ("output_tokens_per_s", "ttft_p99_s"):
        print(f"{name}: {answer.mean(name):.3f} of the answer, {best.mean(name):.3f} of the best ({best.flags})")
    for trial in found:
        print(f"{trial.mean('output_tokens_per_s'):9.1f} {trial.mean('ttft_p99_s'):9.3f} {trial.flags}")
    return 0


def _to_the_end(
    requests: list[Workload], engine: SimulatedEngine, config: SchedulerConfig, advice: Advice
) -> list[Trial]:
    """Run what the advice tried on the whole trace, but for what its long run has run to the end."""
    known = {trial.flags: trial.long for trial in advice.trials}
    if len(requests) > LONG_REQUESTS:
        known = dict.fromkeys(known)
    tried = [one for one in combinations(requests, config, engine.mixed_tokens) if one.flags in known]
    left = [one for one in tried if known[one.flags] is None]
    whole = Bench([requests], [], engine, AUTO_CHUNK, None, 0.0).measured([(one, 0) for one in left], 2)
    for one, measured in zip(left, whole, strict=True):
        known[one.flags] = measured
    return [Trial(flags, [measured]) for flags, measured in known.items() if measured is not None]


def _processor_s() -> float:
    """Return the processor time of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
