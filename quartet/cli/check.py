"""quartet check: what a launch with the same flags would meet: model, device, memory, port, disk. Starts nothing."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from quartet.cli.serve import add_launch_arguments, configuration_of
from quartet.wire.config import Config
from quartet.wire.errors import StartError


class Finding(msgspec.Struct):
    """One row: what was looked at, whether a launch would get past it, and what was found."""

    name: str
    is_ok: bool
    found: str


class Report(msgspec.Struct):
    """Everything that was found. `exit_code` is that of `quartet serve`; `memory` is None if it was not planned."""

    exit_code: int = 0
    findings: list[Finding] = []
    memory: dict[str, Any] | None = None

    def look(self, name: str, look: Callable[[], str]) -> bool:
        """Add what `look` returns, or the StartError that it raises; returns whether it has returned."""
        try:
            self.findings.append(Finding(name, True, look()))
        except StartError as error:
            self.findings.append(Finding(name, False, str(error)))
            self.exit_code = self.exit_code or error.exit_code
            return False
        return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `quartet serve` takes."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_launch_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; returns the exit code that a launch would have. Raises ConfigError for a wrong setting."""
    report = check(configuration_of(arguments).config)
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    return report.exit_code


def check(config: Config) -> Report:
    """Return what a launch of that configuration would meet. A model of the hub is downloaded, a GGUF converted."""
    from quartet.checkpoint.cache import cache_root
    from quartet.checkpoint.resolve import resolve_model
    from quartet.checkpoint.spec import read_spec
    from quartet.runtime.installed import require_torch
    from quartet.sizing.device import Device, find_device, torch_version
    from quartet.supervisor.listener import open_listener

    report, devices = Report(), list[Device | None]()
    resolved = list[Config]()

    def torch() -> str:
        if not config.worker.simulated_worker:
            require_torch()
        return torch_version() or "not needed"

    def model() -> str:
        found = resolve_model(config.model)
        resolved.append(msgspec.structs.replace(config, resolved=found))
        spec = read_spec(Path(found.folder), found.context_length)
        note = "" if spec.linear is None else "; linear attention, prefixes are shared where states are kept"
        return f"{found.name} in {found.folder}: {found.architecture}, supported, context {found.context_length}{note}"

    def device() -> str:
        devices.append(find_device(config))
        return _device(devices[0])

    def port() -> str:
        open_listener(config.server.host, config.server.port).close()
        return f"{config.server.host}:{config.server.port} is free"

    report.look("torch", torch)
    report.look("model", model)
    report.look("device", device)
    if resolved and devices and devices[0] is not None:
        _look_at_memory(report, resolved[0], devices[0])
    report.look("port", port)
    report.look("cache", lambda: _free_disk(cache_root()))
    return report


def _look_at_memory(report: Report, config: Config, device: Any) -> None:
    from quartet.sizing.plan import plan_memory

    def memory() -> str:
        plan = plan_memory(config, device)
        report.memory = msgspec.structs.asdict(plan)
        longest = f", the longest request {plan.largest_context}" if plan.largest_context < plan.context_length else ""
        return (
            f"{plan.line.removeprefix('memory: ')}; {plan.kv_bytes_per_token} bytes a token in {plan.dtype}{longest}; "
            f"at most {plan.max_running_requests} requests run at once"
        )

    report.look("memory", memory)


def _device(device: Any) -> str:
    if device is None:
        return "a GPU whose memory cannot be asked for; the worker decides"
    held = f", held by {', '.join(device.holders)}" if device.holders else ""
    return f"{device.name}: {device.free_bytes / (1 << 30):.1f} of {device.total_bytes / (1 << 30):.1f} GiB free{held}"


def _free_disk(folder: Path) -> str:
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return f"{folder}: {shutil.disk_usage(there).free / (1 << 30):.1f} GiB of disk free"


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        print("\n".join(f"{'ok' if one.is_ok else 'no'}  {one.name:<8}{one.found}" for one in report.findings))
        return
    table = Table.grid(padding=(0, 2))
    for one in report.findings:
        mark = "[green]ok[/]" if one.is_ok else "[bold red]no[/]"
        table.add_row(mark, one.name, one.found.replace("[", r"\["))
    console.print(table)
