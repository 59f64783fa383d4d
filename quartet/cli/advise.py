"""quartet advise: run a trace under every policy and recommend one."""

import argparse
import json

import msgspec

from quartet.cli.simulate import SIMULATED, add_simulation_arguments, chunk_tokens, read_workload, sized_engine
from quartet.settings import build_config
from quartet.simulator.advise import advise
from quartet.simulator.presets import preset
from quartet.simulator.trace_source import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the trace and the scheduler's settings."""
    parser.add_argument("trace", metavar="TRACE", help=f"a workload: {FORMATS}")
    add_simulation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run a trace under every policy and print the recommendation; returns the exit code. Raises ConfigError."""
    config = build_config(vars(arguments), names=SIMULATED)
    engine = sized_engine(preset(arguments.preset), config)
    advice = advise(read_workload(arguments, config), engine, config.scheduler, chunk_tokens(config, engine))
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(advice)))
    else:
        from quartet.simulator.tables import print_advice

        print_advice(advice)
    return 0
