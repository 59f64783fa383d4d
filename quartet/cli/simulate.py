"""quartet simulate: the scheduler on virtual time, from the command line; what it shares with quartet advise.

Every scheduling setting is the flag that `quartet serve` has. `--max-total-tokens`, `--page-size` and
`--context-length` size the engine; what is not given comes from the scenario, then from the preset.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec

from quartet.cli.options import add_options
from quartet.settings import SETTINGS, build_config
from quartet.simulator.driver import SimulatedEngine, simulate
from quartet.simulator.presets import DEFAULT_PRESET, PRESETS, preset
from quartet.simulator.report import Report, make_report
from quartet.simulator.request import Workload
from quartet.simulator.scenarios import SCENARIOS, Scenario, make_scenario
from quartet.simulator.trace import TraceError, write_trace
from quartet.simulator.trace_source import FORMATS, TraceOptions, load_trace
from quartet.simulator.workload import SimulationError
from quartet.wire.config import Config, WorkerConfig
from quartet.wire.errors import ConfigError
from quartet.wire.lengths import AUTO_CHUNK, AUTO_CHUNK_CPU

SIMULATED = frozenset(
    {name for name, setting in SETTINGS.items() if setting.section == "scheduler"}
    | {"max_total_tokens", "page_size", "context_length"}
)
"""The settings that a simulation has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the workload, what to write, and the scheduler's settings."""
    parser.usage = f"{parser.prog} (--scenario NAME | --trace FILE) [flags]"
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenario", choices=sorted(SCENARIOS), help="a workload by name")
    source.add_argument("--trace", metavar="FILE", help=f"a workload: {FORMATS}")
    parser.add_argument("--requests", metavar="N", help="of the scenario")
    parser.add_argument(
        "--scenario-set", action="append", metavar="NAME=VALUE", help="set a parameter of the scenario; repeatable"
    )
    parser.add_argument("--plot", metavar="DIR", help="write plots as PNG and SVG")
    parser.add_argument("--save-trace", metavar="FILE", help="write the workload as a trace")
    add_simulation_arguments(parser)


def add_simulation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how a workload is read, what steps cost, and the scheduler's settings."""
    parser.add_argument("--rate", metavar="R", help="requests (or sessions) a second, where the workload has no times")
    parser.add_argument("--speed", metavar="X", type=float, default=1.0, help="let a trace arrive X times as fast")
    parser.add_argument("--first", metavar="MINUTES", type=float, default=0.0, help="only the beginning of a trace")
    parser.add_argument(
        "--assume-max-tokens", metavar="N", type=int, default=0, help="what every client of a trace asked for"
    )
    parser.add_argument("--preset", default=DEFAULT_PRESET, help=f"what steps cost: {', '.join(PRESETS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_options(parser, SIMULATED)


def run(arguments: argparse.Namespace) -> int:
    """Run one simulation and print its report; returns the exit code. Raises ConfigError."""
    config = build_config(vars(arguments), names=SIMULATED)
    scenario = _scenario(arguments, config)
    config = _with_slots(config, scenario)
    if arguments.save_trace:
        write_trace(Path(arguments.save_trace), scenario.requests)
    try:
        run = simulate(scenario.requests, scenario.engine, config.scheduler)
    except SimulationError as error:
        raise ConfigError(f"the simulation cannot go on: {error}") from error
    report = make_report(run, scenario.engine, chunk_tokens(config, scenario.engine))
    title = f"{scenario.name}, {config.scheduler.schedule_policy}, {arguments.preset}"
    if arguments.plot:
        from quartet.simulator.plots import save_plots

        save_plots(run, scenario.engine, Path(arguments.plot), title)
    if arguments.json:
        print(json.dumps(_facts(arguments, config, scenario) | report_object(report)))
    else:
        from quartet.simulator.tables import print_report

        print_report(report, title)
    return 0


def report_object(report: Report) -> dict[str, Any]:
    """Return a report as the plain object that --json prints."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def _facts(arguments: argparse.Namespace, config: Config, scenario: Scenario) -> dict[str, Any]:
    engine = scenario.engine
    return {
        "scenario": scenario.name,
        "preset": arguments.preset,
        "schedule_policy": config.scheduler.schedule_policy,
        "enable_priority_scheduling": config.scheduler.enable_priority_scheduling,
        "seed": config.scheduler.random_seed,
        "kv_tokens": engine.kv_tokens,
        "page_size": engine.page_size,
        "max_running_requests": config.scheduler.max_running_requests or engine.max_slots,
    }


def _scenario(arguments: argparse.Namespace, config: Config) -> Scenario:
    engine = sized_engine(preset(arguments.preset), config)
    if arguments.trace:
        for flag in ("requests", "scenario_set"):
            if getattr(arguments, flag):
                raise ConfigError(f"--{flag.replace('_', '-')} belongs to --scenario, not to --trace")
        return Scenario(name=Path(arguments.trace).stem, engine=engine, requests=read_workload(arguments, config))
    given: dict[str, str] = {}
    for pair in arguments.scenario_set or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--scenario-set: {pair!r} is not name=value")
        given[name.strip().replace("-", "_")] = value
    given |= {name: getattr(arguments, name) for name in ("requests", "rate") if getattr(arguments, name)}
    scenario = make_scenario(arguments.scenario, engine, config.scheduler.random_seed, given)
    return msgspec.structs.replace(scenario, engine=sized_engine(scenario.engine, config))


def read_workload(arguments: argparse.Namespace, config: Config) -> list[Workload]:
    """Return the requests of the trace that the arguments name. Raises ConfigError."""
    try:
        options = TraceOptions(
            speed=_positive("--speed", arguments.speed),
            first_minutes=max(0.0, arguments.first),
            rate=_positive("--rate", arguments.rate) if arguments.rate else 0.0,
            max_tokens=max(0, arguments.assume_max_tokens),
            seed=config.scheduler.random_seed,
        )
        return load_trace(Path(arguments.trace), options)
    except TraceError as error:
        raise ConfigError(str(error)) from error


def _positive(flag: str, text: str | float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"{flag}: {text} is not a number above 0")
    return value


def sized_engine(engine: SimulatedEngine, config: Config) -> SimulatedEngine:
    """Return the engine with the size that the command line gives."""
    given = config.worker.page_size
    page_size = engine.page_size if given == WorkerConfig().page_size else given
    return msgspec.structs.replace(
        engine,
        page_size=page_size,
        kv_tokens=(config.worker.max_total_tokens or engine.kv_tokens) // page_size * page_size,
        context_length=config.model.context_length or engine.context_length,
    )


def _with_slots(config: Config, scenario: Scenario) -> Config:
    if config.scheduler.max_running_requests or not scenario.max_running_requests:
        return config
    scheduler = msgspec.structs.replace(config.scheduler, max_running_requests=scenario.max_running_requests)
    return msgspec.structs.replace(config, scheduler=scheduler)


def chunk_tokens(config: Config, engine: SimulatedEngine) -> int:
    """Return the tokens of one prefill step."""
    return config.scheduler.chunked_prefill_size or (AUTO_CHUNK_CPU if engine.is_cpu else AUTO_CHUNK)
