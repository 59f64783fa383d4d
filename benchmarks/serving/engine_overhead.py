"""What the engine costs without a model: real processes, a simulated worker that answers at once, and one client.

    python -m benchmarks.serving.engine_overhead [streams] [tokens per stream]

Prints tokens per second and CPU per token of each process.
"""

import os
import sys

import msgspec

from benchmarks.serving.gpu_launch import plan_with_client
from quartet.checkpoint.resolve import resolve_model
from quartet.supervisor.plan import plan_processes
from quartet.supervisor.supervisor import Supervisor
from quartet.wire.config import Config, SchedulerConfig, ServerConfig, WorkerConfig


def main(arguments: list[str]) -> int:
    """Run the launch to its end."""
    if arguments:
        os.environ["BENCH_STREAMS"] = arguments[0]
    if arguments[1:]:
        os.environ["BENCH_TOKENS"] = arguments[1]
    streams = int(os.environ.get("BENCH_STREAMS", "256"))
    tokens = int(os.environ.get("BENCH_TOKENS", "2000"))
    config = Config(
        server=ServerConfig(port=0, shutdown_timeout=1.0),
        scheduler=SchedulerConfig(max_running_requests=streams),
        worker=WorkerConfig(simulated_worker=True, max_total_tokens=streams * (tokens + 64)),
    )
    config = msgspec.structs.replace(config, resolved=resolve_model(config.model))
    return Supervisor(config, plan_with_client(plan_processes(config), "benchmarks.serving.overhead_client")).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
