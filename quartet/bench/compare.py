"""Two results side by side: files of this project, of vLLM's client and of SGLang's.

A side is one or more runs: a file with one JSON object a line, or a folder of such files. With two runs or more on both
sides a difference counts if it exceeds the half-width of Welch's 95 % confidence interval.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from quartet.wire.errors import ConfigError

Run = Mapping[str, Any]

HIGHER_IS_BETTER = (
    "request_throughput",
    "request_goodput",
    "input_throughput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
)
LOWER_IS_BETTER = ("failed", "duration")
NEUTRAL = ("completed", "total_input_tokens", "total_output_tokens", "total_cached_tokens", "max_concurrent_requests")
T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131)
"""Student's t at 97.5 % for 1, 2, ... degrees of freedom; T_MANY for more."""
T_MANY = 2.1


class Difference(NamedTuple):
    """One row: means of both sides, the change in per cent of the first, and how to read it.

    `verdict` is "better", "worse" or "other" for a difference beyond noise, "noise" for one within, and "" where a
    side has one run, so that the noise is unknown.
    """

    name: str
    first: float
    second: float
    percent: float | None
    noise: float | None
    verdict: str


def read_runs(path: Path) -> list[Run]:
    """Return the runs of a file or folder; raises ConfigError."""
    try:
        files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
        runs = [_named_alike(run) for file in files for run in _objects(file.read_text())]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no results, which are JSON objects, one a line: {error}") from error
    if not runs:
        raise ConfigError(f"{path} holds no results; `quartet bench serve --save-result` writes them")
    return runs


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    runs = found if isinstance(found, list) else [found]
    if not all(isinstance(run, dict) for run in runs):
        raise ValueError("not an object")
    return runs


def _named_alike(run: dict[str, Any]) -> Run:
    """Name what SGLang's client measures as vLLM's does."""
    found = {name.replace("e2e_latency_ms", "e2el_ms"): value for name, value in run.items()}
    return {"total_token_throughput": run.get("total_throughput")} | found


def compare(first: Sequence[Run], second: Sequence[Run]) -> list[Difference]:
    """Return a row for each figure that every run of both sides has."""
    runs = [*first, *second]
    names = [*HIGHER_IS_BETTER, *LOWER_IS_BETTER, *NEUTRAL]
    names += [name for name in runs[0] if name.endswith("_ms") and "lateness" not in name]
    shared = [name for name in dict.fromkeys(names) if all(_is_number(run.get(name)) for run in runs)]
    return [_difference(name, [run[name] for run in first], [run[name] for run in second]) for name in shared]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _difference(name: str, first: Sequence[float], second: Sequence[float]) -> Difference:
    before, after = statistics.fmean(first), statistics.fmean(second)
    percent = (after - before) / before * 100 if before else None
    noise = noise_of(first, second)
    if noise is None:
        return Difference(name, before, after, percent, None, "")
    if abs(after - before) <= noise:
        verdict = "noise"
    elif name in NEUTRAL:
        verdict = "other"
    else:
        verdict = "better" if (after > before) == (name in HIGHER_IS_BETTER) else "worse"
    return Difference(name, before, after, percent, noise, verdict)


def noise_of(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the difference of means that chance explains (Welch, 95 %); None if a side has one value."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [statistics.variance(side) / len(side) for side in (first, second)]
    error = math.sqrt(sum(parts))
    if not error:
        return 0.0
    weights = [part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True)]
    freedom = int(sum(parts) ** 2 / sum(weights))
    return error * (T_95[freedom - 1] if freedom <= len(T_95) else T_MANY)


def print_comparison(rows: Sequence[Difference], first: str, second: str) -> None:
    """Print the rows as a table."""
    table = Table("", title=f"{first} and {second}")
    for column in (first, second, "change", "noise", ""):
        table.add_column(column, justify="right")
    colours = {"better": "green", "worse": "red", "other": "yellow"}
    for row in rows:
        colour = colours.get(row.verdict, "default")
        table.add_row(
            row.name,
            f"{row.first:,.2f}",
            f"{row.second:,.2f}",
            "-" if row.percent is None else f"{row.percent:+.1f} %",
            "?" if row.noise is None else f"± {row.noise:,.2f}",
            f"[{colour}]{row.verdict}[/{colour}]",
        )
    console = Console()
    console.print(table)
    if any(row.noise is None for row in rows):
        console.print("A side has one run, so what of this is noise is unknown: give several runs of each.")
