"""quartet why: where the time of one request went, live or on a trace, and under another policy."""

import argparse
import json
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from quartet.cli.engine_client import add_engine_arguments, ask_engine
from quartet.cli.simulate import SIMULATED, add_simulation_arguments, read_workload, sized_engine
from quartet.settings import build_config
from quartet.simulator.driver import simulate
from quartet.simulator.presets import preset
from quartet.simulator.record import Outcome
from quartet.simulator.trace_source import FORMATS
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError
from scheduler_proc.core.explain import SENTENCES, sentences


class Choice(msgspec.Struct):
    """One choice of a request, as far as it is told here, from GET /requests/{id}/timeline."""

    choice: int
    state: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    retractions: int
    total_s: float
    summary: list[str]


class Told(msgspec.Struct):
    """What GET /requests/{id}/timeline gives."""

    rid: str
    choices: list[Choice]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the request, and the trace and policies for one that is simulated."""
    parser.add_argument(
        "id", metavar="ID", help="of the answer, or the client's own; on a trace also the line's number"
    )
    add_engine_arguments(parser)
    parser.add_argument("--trace", metavar="FILE", help=f"simulate a workload instead: {FORMATS}")
    parser.add_argument("--with-policy", metavar="POLICY", help="with --trace: what it would have been under POLICY")
    add_simulation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print where the time went; returns the exit code. Raises EngineError and ConfigError."""
    if arguments.trace:
        return _of_trace(arguments)
    if arguments.with_policy:
        raise ConfigError("--with-policy needs --trace: only a recorded workload can be run again")
    path = f"/requests/{arguments.id}/timeline"
    if arguments.json:
        print(json.dumps(ask_engine(arguments, path, dict[str, Any])))
        return 0
    for one in ask_engine(arguments, path, Told).choices:
        print(f"Choice {one.choice}, {one.state}: {one.total_s:.3f} s")
        print(f"  {one.prompt_tokens} prompt tokens, {one.cached_tokens} of them cached; {one.output_tokens} outputs;")
        print(f"  {one.retractions} retractions or preemptions")
        print("".join(f"    {line}\n" for line in one.summary), end="")
    return 0


def _of_trace(arguments: argparse.Namespace) -> int:
    config = build_config(vars(arguments), names=SIMULATED)
    requests = read_workload(arguments, config)
    names = [request.id for request in requests]
    number = names.index(arguments.id) if arguments.id in names else _number(arguments.id, len(requests))
    policies = list(dict.fromkeys([config.scheduler.schedule_policy, arguments.with_policy or ""]))
    found = {policy: _simulated(arguments, config, policy, number) for policy in policies if policy}
    if arguments.json:
        print(json.dumps({policy: _told(outcome) for policy, outcome in found.items()}))
        return 0
    _print(arguments.id, found)
    return 0


def _number(text: str, count: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= count:
        raise ConfigError(f"the trace has no request {text!r}: give the id of one, or a number from 1 to {count}")
    return int(text) - 1


def _simulated(arguments: argparse.Namespace, config: Config, policy: str, number: int) -> Outcome:
    # The policy is checked like one that is given by its flag.
    config = build_config({**vars(arguments), "scheduler.schedule_policy": policy}, names=SIMULATED)
    engine = sized_engine(preset(arguments.preset), config)
    return simulate(read_workload(arguments, config), engine, config.scheduler).outcomes[number]


def _told(outcome: Outcome) -> dict[str, Any]:
    total_s = outcome.end_s - outcome.arrival_s
    return {
        "ending": outcome.ending,
        "ttft_s": round(outcome.first_token_s - outcome.arrival_s, 6),
        "total_s": round(total_s, 6),
        "parts": [
            {"part": name, "seconds": round(seconds, 6), **({"after": setback} if setback else {})}
            for name, setback, seconds in outcome.parts
        ],
        "summary": sentences(outcome.parts, total_s),
    }


def _print(name: str, found: dict[str, Outcome]) -> None:
    table = Table(title=f"Request {name}", box=None)
    table.add_column("seconds of")
    for policy in found:
        table.add_column(policy, justify="right")
    outcomes = list(found.values())
    table.add_row("first token", *(f"{one.first_token_s - one.arrival_s:.3f}" for one in outcomes))
    table.add_row("the whole", *(f"{one.end_s - one.arrival_s:.3f}" for one in outcomes))
    parts = [{(part, setback): seconds for part, setback, seconds in one.parts} for one in outcomes]
    for key in dict.fromkeys(key for one in parts for key in one):
        part, setback = key
        told = SENTENCES[part] + (f", after a {setback}" if setback else "")
        table.add_row(told, *(f"{one.get(key, 0.0):.3f}" for one in parts))
    Console().print(table)
