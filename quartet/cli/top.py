"""quartet top: load and processes of a running engine, drawn again every second."""

import argparse
import asyncio
import json
import sys
from typing import Any

import msgspec

from quartet.cli.engine_client import EngineClient, add_engine_arguments
from quartet.wire.errors import ConfigError

SHORTEST_S = 0.1


class Load(msgspec.Struct):
    """What the scheduler has to do, as GET /v1/loads shows it."""

    num_running_reqs: int
    num_waiting_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    max_running_requests: int
    token_usage: float
    gen_throughput: float
    cache_hit_rate: float


class Process(msgspec.Struct):
    """One process of the launch, as GET /topology shows it."""

    role: str
    rank: int
    pid: int
    state: str
    phase: str
    restarts: int
    last_cause: str = ""


class Loads(msgspec.Struct):
    """What GET /v1/loads gives; empty until the scheduler has reported."""

    loads: list[Load]


class Topology(msgspec.Struct):
    """What GET /topology gives."""

    processes: list[Process]


class Picture(msgspec.Struct):
    """What is drawn at one moment."""

    url: str
    loads: list[Load]
    processes: list[Process]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the engine's address, and how often to draw."""
    add_engine_arguments(parser)
    parser.add_argument("--once", action="store_true", help="draw once and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between two (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and end")


def run(arguments: argparse.Namespace) -> int:
    """Draw until interrupted, once where the output is no terminal; returns the exit code. Raises EngineError."""
    if not arguments.interval >= SHORTEST_S:
        raise ConfigError(f"--interval: {arguments.interval:g} is not allowed, it must be at least {SHORTEST_S}")
    is_once = arguments.once or arguments.json or not sys.stdout.isatty()
    return asyncio.run(_show(arguments, is_once))


async def _show(arguments: argparse.Namespace, is_once: bool) -> int:
    from rich.console import Console
    from rich.live import Live

    async with EngineClient(arguments.url, arguments.api_key) as engine:
        picture = await _picture(engine)
        if arguments.json:
            print(json.dumps(msgspec.to_builtins(picture)))
        elif is_once:
            Console(highlight=False).print(drawing(picture))
        else:
            with Live(drawing(picture), screen=True, auto_refresh=False) as live:
                while True:
                    await asyncio.sleep(arguments.interval)
                    live.update(drawing(await _picture(engine)), refresh=True)
    return 0


async def _picture(engine: EngineClient) -> Picture:
    loads, topology = await engine.get("/v1/loads", Loads), await engine.get("/topology", Topology)
    return Picture(engine.address, loads.loads, topology.processes)


def drawing(picture: Picture) -> Any:
    """Return the tables of a picture, for rich."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    load = Table.grid(padding=(0, 2))
    for one in picture.loads:
        load.add_row("running", f"{one.num_running_reqs} of {one.max_running_requests}", _bar(one, ProgressBar))
        load.add_row("waiting", str(one.num_waiting_reqs))
        tokens = f"{one.num_used_tokens:,} of {one.max_total_num_tokens:,} tokens"
        load.add_row("KV cache", tokens, ProgressBar(total=1.0, completed=one.token_usage, width=30))
        load.add_row("prefix hits", f"{one.cache_hit_rate:.0%}")
        load.add_row("output", f"{one.gen_throughput:,.0f} tokens/s")
    processes = Table("PROCESS", "PID", "STATE", "PHASE", "RESTARTS", "LAST CAUSE", box=None)
    for row in picture.processes:
        name = f"{row.role} {row.rank}" if row.rank else row.role
        style = "" if row.state == "ready" else "bold yellow"
        cells = (name, str(row.pid), row.state, row.phase, str(row.restarts), row.last_cause)
        processes.add_row(*(Text(cell) for cell in cells), style=style)
    waiting = () if picture.loads else (Text("the scheduler has not reported yet"),)
    return Group(Text(f"Quartet at {picture.url}", style="bold"), Text(), load, *waiting, Text(), processes)


def _bar(load: Load, bar: Any) -> Any:
    return bar(total=max(1, load.max_running_requests), completed=load.num_running_reqs, width=30)
