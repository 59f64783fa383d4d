"""quartet advise: run a trace under every sensible configuration and recommend one.

With `--step-order slack --tbt-target-ms T` the step orders are compared too, by the gaps above T.
"""

import argparse
import json
import os
from pathlib import Path

import msgspec

from quartet.cli.simulate import SIMULATED, add_simulation_arguments, chunk_tokens, read_workload, sized_engine
from quartet.settings import build_config
from quartet.simulator.advise import Advice, advise
from quartet.simulator.capacity import UNBOUNDED_QUEUE
from quartet.simulator.cost import fit
from quartet.simulator.driver import SimulatedEngine
from quartet.simulator.presets import preset
from quartet.simulator.trace_source import FORMATS
from quartet.simulator.workload import SimulationError
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError

PROCESSES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the trace and the scheduler's settings."""
    parser.add_argument("trace", metavar="TRACE", help=f"a workload: {FORMATS}")
    parser.add_argument("--fit", metavar="FILE", help="fit what steps cost to measured steps, instead of a preset's")
    parser.add_argument("--report", metavar="FILE", help="write a report: FILE.html or FILE.md")
    add_simulation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the configurations and print the recommendation; returns the exit code. Raises ConfigError."""
    config = build_config(vars(arguments), names=SIMULATED)
    advice = _advice(arguments, config, _engine(arguments, config))
    if arguments.report:
        from quartet.simulator.advice_report import write_report

        write_report(advice, Path(arguments.report), f"{Path(arguments.trace).name} on {arguments.preset}")
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(advice)))
    else:
        from quartet.simulator.tables import print_advice

        print_advice(advice)
    return 0


def _engine(arguments: argparse.Namespace, config: Config) -> SimulatedEngine:
    engine = sized_engine(preset(arguments.preset), config)
    if not arguments.fit:
        return engine
    try:
        return msgspec.structs.replace(engine, cost=fit(Path(arguments.fit)))
    except OSError as error:
        raise ConfigError(f"--fit: {arguments.fit}: {error.strerror}") from error


def _advice(arguments: argparse.Namespace, config: Config, engine: SimulatedEngine) -> Advice:
    # A queue that refuses requests would make configurations differ by what they serve.
    scheduler = msgspec.structs.replace(config.scheduler, max_queued_requests=UNBOUNDED_QUEUE)
    processes = min(PROCESSES, os.cpu_count() or 1)
    try:
        return advise(read_workload(arguments, config), engine, scheduler, chunk_tokens(config, engine), processes)
    except SimulationError as error:
        raise ConfigError(f"the simulation cannot go on: {error}") from error
