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
from quartet.simulator.cost import read_steps
from quartet.simulator.driver import SimulatedEngine
from quartet.simulator.presets import preset
from quartet.simulator.trace_source import FORMATS
from quartet.simulator.workload import SimulationError
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError
from scheduler_proc.core.step_cost import fit_steps, residuals

PROCESSES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the trace and the scheduler's settings."""
    parser.add_argument("trace", metavar="TRACE", help=f"a workload: {FORMATS}")
    parser.add_argument(
        "--fit",
        metavar="FILE|URL",
        help="fit what steps cost to measured steps, instead of a preset's: a file, or a running engine without other "
        "load, on which a short one measures them and whose size is taken",
    )
    parser.add_argument("--report", metavar="FILE", help="write a report: FILE.html or FILE.md")
    add_simulation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the configurations and print the recommendation; returns the exit code. Raises ConfigError."""
    config = build_config(vars(arguments), names=SIMULATED)
    engine, notes = _engine(arguments, config)
    advice = _advice(arguments, config, engine)
    advice = msgspec.structs.replace(advice, notes=[*advice.notes, *notes])
    if arguments.report:
        from quartet.simulator.advice_report import write_report

        write_report(advice, Path(arguments.report), f"{Path(arguments.trace).name} on {arguments.preset}")
    if arguments.json:
        print(json.dumps(msgspec.to_builtins(advice)))
    else:
        from quartet.simulator.tables import print_advice

        print_advice(advice)
    return 0


def _engine(arguments: argparse.Namespace, config: Config) -> tuple[SimulatedEngine, list[str]]:
    """Return the engine, and what is to be said of its step costs."""
    engine = preset(arguments.preset)
    if not arguments.fit:
        return sized_engine(engine, config), []
    if arguments.fit.startswith(("http://", "https://")):
        from quartet.cli.calibration import calibrated

        engine, steps = calibrated(arguments.fit, engine)
    else:
        try:
            steps = read_steps(Path(arguments.fit))
        except OSError as error:
            raise ConfigError(f"--fit: {arguments.fit}: {error.strerror}") from error
        engine = msgspec.structs.replace(engine, cost=fit_steps(steps))
    worst = max(abs(error) for _, error in residuals(engine.cost, steps))
    note = f"Step costs are fitted to {len(steps)} steps of {arguments.fit}; the fit is within {worst:.0%} of each."
    return sized_engine(engine, config), [note]


def _advice(arguments: argparse.Namespace, config: Config, engine: SimulatedEngine) -> Advice:
    # A queue that refuses requests would make configurations differ by what they serve.
    scheduler = msgspec.structs.replace(config.scheduler, max_queued_requests=UNBOUNDED_QUEUE)
    processes = min(PROCESSES, os.cpu_count() or 1)
    try:
        return advise(read_workload(arguments, config), engine, scheduler, chunk_tokens(config, engine), processes)
    except SimulationError as error:
        raise ConfigError(f"the simulation cannot go on: {error}") from error
