"""quartet ps: the processes of a running engine, or the scheduler's settings in force."""

import argparse
import json
from typing import Any

import msgspec

from quartet.cli.engine_client import add_engine_arguments, ask_engine


class Process(msgspec.Struct):
    """One process of the launch, as GET /topology shows it."""

    role: str
    rank: int
    pid: int
    epoch: int
    restarts: int
    state: str
    phase: str
    last_recovery_s: float = 0.0


class Topology(msgspec.Struct):
    """What GET /topology gives."""

    processes: list[Process]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the engine's address and what to show."""
    add_engine_arguments(parser)
    parser.add_argument("--config", action="store_true", help="show the scheduler's settings in force instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; returns the exit code. Raises EngineError."""
    if arguments.config:
        settings = ask_engine(arguments, "/config", dict[str, Any])
        lines = [f"{name:<44} {value}" for name, value in settings.items()]
        print(json.dumps(settings) if arguments.json else "\n".join(lines))
        return 0
    topology = ask_engine(arguments, "/topology", Topology)
    if arguments.json:
        print(msgspec.json.encode(topology).decode())
        return 0
    print(f"{'ROLE':<12}{'RANK':>4}{'PID':>9}{'EPOCH':>7}{'RESTARTS':>10}  {'STATE':<14}PHASE")
    for one in topology.processes:
        numbers = f"{one.rank:>4}{one.pid:>9}{one.epoch:>7}{one.restarts:>10}"
        print(f"{one.role:<12}{numbers}  {one.state:<14}{one.phase}")
    return 0
