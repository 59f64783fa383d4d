"""quartet tune: measure launch parameters of the linears of a model on this card, and keep what is faster."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quartet.cli.bench_workload import COUNT
from quartet.runtime.installed import require_torch
from quartet.settings import configure
from quartet.wire.config import ModelConfig
from quartet.wire.errors import ConfigError

if TYPE_CHECKING:
    from quartet.checkpoint.spec import ModelSpec
    from worker_proc.tuning.tune import Outcome


class Gain(msgspec.Struct):
    """Microseconds of all linears of a decode step over `rows` rows: before, after, and as long as reading the weights
    takes."""

    rows: int
    before_us: float
    after_us: float
    floor_us: float


class Tuning(msgspec.Struct):
    """What `quartet tune --json` prints. `written` is the table's file, empty if nothing was faster."""

    card: str
    multiprocessors: int
    read_bytes_per_s: float
    seconds: float
    gains: list[Gain]
    faster_linears: int
    written: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, and how far to measure."""
    parser.add_argument("model", metavar="MODEL", help="folder, .gguf file or hub id whose linears are measured")
    parser.add_argument("--max-rows", type=COUNT, default=128, metavar="N", help="batch size to measure up to (128)")
    parser.add_argument("--output", metavar="FILE", help="write the table there instead of to the cache")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print and write; returns the exit code. Raises ConfigError without a CUDA device, and ModelError."""
    from quartet.sizing.device import find_device

    require_torch()
    config = configure({"model.model_path": arguments.model}).config
    device = find_device(config)
    if device is not None and not device.is_cuda:
        raise ConfigError("quartet tune measures a GPU, and there is none; on a CPU there is nothing to tune")
    spec = _spec_of(config.model)
    from worker_proc.tuning.card import Card
    from worker_proc.tuning.tables import add_to, tuned_path
    from worker_proc.tuning.tune import better, sizes, step_us

    started, card, outcomes = time.monotonic(), Card(), list["Outcome"]()
    if not arguments.json:
        rate = card.read_bytes_per_s / 1e12
        print(f"{card.name}: {card.multiprocessors} multiprocessors, reads {rate:.2f} TB/s")
    for outcome in card.tune(spec, arguments.max_rows):
        outcomes.append(outcome)
        if not arguments.json:
            print(_line(outcome), flush=True)
    table = better(outcomes)
    path = Path(arguments.output) if arguments.output else tuned_path(card.name)
    if table:
        add_to(path, card.name, table)
    floor_us = sum(one.linear.weight_bytes for one in outcomes if one.rows == 1) / card.read_bytes_per_s * 1e6
    gains = [Gain(rows, *step_us(outcomes, rows), floor_us) for rows in sizes(arguments.max_rows)]
    result = Tuning(
        card.name,
        card.multiprocessors,
        card.read_bytes_per_s,
        time.monotonic() - started,
        gains,
        len(table),
        str(path) if table else "",
    )
    if arguments.json:
        print(msgspec.json.encode(result).decode())
    else:
        _print(result)
    return 0


def _spec_of(config: ModelConfig) -> "ModelSpec":
    """Return the shape of the model; of a folder config.json is enough."""
    from quartet.checkpoint.model_folder import read_json
    from quartet.checkpoint.resolve import resolve_model
    from quartet.checkpoint.spec import context_limit, read_spec

    folder = Path(config.model_path)
    if folder.is_dir():
        return read_spec(folder, context_limit(read_json(folder / "config.json")))
    model = resolve_model(config)
    return read_spec(Path(model.folder), model.context_length)


def _line(outcome: Any) -> str:
    linear = outcome.linear
    shape = f"{linear.form:8}{linear.width:7} x {linear.depth:<6}{outcome.rows:4} rows {outcome.before_us:8.1f} us"
    if not outcome.is_better:
        return shape
    return f"{shape} -> {outcome.after_us:.1f} with {'cuBLAS' if outcome.tile is None else outcome.tile}"


def _print(result: Tuning) -> None:
    print("\nall linears of a decode step, ms: before, after, time to read the weights")
    for gain in result.gains:
        before, after, floor = (us / 1e3 for us in (gain.before_us, gain.after_us, gain.floor_us))
        print(f"{gain.rows:4} rows {before:8.3f} {after:8.3f} {floor:8.3f}")
    if result.written:
        print(f"\n{result.faster_linears} linears are faster; engines that start from now on take them from")
        print(result.written)
    else:
        print("\nnothing is faster than what the engine takes already; no table is written")
    print(f"measured in {result.seconds:.0f} s")
