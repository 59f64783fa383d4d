"""What `quartet bench serve` reports and writes: flags, rows, files."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quartet.bench.metrics import METRICS
from quartet.bench.plan import Record
from quartet.wire.errors import ConfigError

GOODPUT_METRICS = ("ttft", "tpot", "e2el")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to report and what to write."""
    output = parser.add_argument_group("output")
    output.add_argument("--percentile-metrics", default=",".join(METRICS), help="rows; default: %(default)s")
    output.add_argument("--metric-percentiles", default="99", help="e.g. 25,50,99; default: %(default)s")
    output.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:MS", help="bounds that a good request keeps: ttft:200 ..."
    )
    output.add_argument("--save-result", action="store_true", help="write the result as JSON, under a name of its own")
    output.add_argument("--save-detailed", action="store_true", help="with the times of every request")
    output.add_argument("--append-result", action="store_true", help="add a line to the file, as one more run")
    output.add_argument("--result-dir", default="", metavar="DIR", help="folder of the file")
    output.add_argument("--result-filename", default="", metavar="FILE", help="write the result to this file")
    output.add_argument("--plot", metavar="DIR", help="write plots of throughput and latencies as PNG and SVG")
    output.add_argument("--disable-tqdm", action="store_true", help="show no progress")
    output.add_argument("--json", action="store_true", help="print the result as one JSON object")


def details(records: Sequence[Record]) -> dict[str, Any]:
    """Return what --save-detailed adds: a list with a value for each request."""
    return {
        "input_lens": [one.input_tokens for one in records],
        "output_lens": [one.output_tokens for one in records],
        "start_times": [one.start_s for one in records],
        "ttfts": [one.ttft_s for one in records],
        "itls": [one.itl_s for one in records],
        "latencies": [one.latency_s for one in records],
        "queue_times": [one.queued_s for one in records],
        "lateness": [one.late_s for one in records],
        "errors": [f"{one.failure}: {one.message}" if one.failure else "" for one in records],
    }


def result_path(arguments: argparse.Namespace, result: dict[str, Any]) -> Path | None:
    """Return the file that the arguments ask for, or None."""
    is_wanted = (
        arguments.save_result
        or arguments.save_detailed
        or arguments.append_result
        or arguments.result_dir
        or arguments.result_filename
    )
    if not is_wanted:
        return None
    model = result["model_id"].rpartition("/")[2]
    name = f"{arguments.backend}-{result['request_rate']}qps-{model}-{result['date']}.json"
    return Path(arguments.result_dir) / (arguments.result_filename or name)


def wanted_figures(arguments: argparse.Namespace) -> tuple[list[str], list[float]]:
    """Return the metrics to show and the percentiles; raises ConfigError."""
    metrics = [name.strip() for name in arguments.percentile_metrics.split(",")]
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ConfigError(f"--percentile-metrics: {unknown[0]!r} is not one of {', '.join(METRICS)}")
    try:
        percentiles = [float(share) for share in arguments.metric_percentiles.split(",")]
    except ValueError:
        percentiles = [math.nan]
    if not all(0 <= share <= 100 for share in percentiles):
        raise ConfigError(f"--metric-percentiles: {arguments.metric_percentiles!r} is no list of numbers up to 100")
    return metrics, percentiles


def goodput_bounds(pairs: Sequence[str]) -> dict[str, float]:
    """Return the bound in milliseconds of each metric that --goodput names; raises ConfigError."""
    bounds = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        try:
            bounds[name] = float(text)
        except ValueError:
            bounds[name] = -1.0
        if name not in GOODPUT_METRICS or not bounds[name] >= 0:
            raise ConfigError(f"--goodput: {pair!r} is no METRIC:MS with a metric of {', '.join(GOODPUT_METRICS)}")
    return bounds


def save(result: Mapping[str, Any], path: Path, is_appended: bool = False) -> None:
    """Write a result as one line of JSON; raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if is_appended else "wb") as file:
            file.write(msgspec.json.encode(result) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
