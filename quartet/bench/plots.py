"""Pictures of a run: what came through in each second, and how latencies are distributed. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quartet.bench.metrics import METRICS, by_second, values_of
from quartet.bench.plan import Record
from quartet.simulator.plots import save_figures


def save_plots(records: Sequence[Record], folder: Path, title: str) -> list[Path]:
    """Write throughput and latencies as PNG and SVG into `folder`, made if need be; returns the files.

    Raises ConfigError if matplotlib is not installed.
    """
    good = [record for record in records if not record.failure]
    return save_figures(
        folder, {"throughput": lambda: draw_throughput(good, title), "latency": lambda: draw_latencies(good, title)}
    )


def draw_throughput(records: Sequence[Record], title: str) -> Any:
    """Return a figure: events with output and requests in flight, by seconds of the run."""
    from matplotlib.figure import Figure

    tokens, active = by_second(records)
    figure = Figure(figsize=(10, 5), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.set_title(title)
    top.step(range(len(tokens)), tokens, where="post")
    top.set_ylabel("output tokens/s")
    bottom.step(range(len(active)), active, where="post", color="tab:orange")
    bottom.set_ylabel("requests in flight")
    bottom.set_xlabel("seconds")
    for axes in (top, bottom):
        axes.set_ylim(bottom=0)
    return figure


def draw_latencies(records: Sequence[Record], title: str) -> Any:
    """Return a figure: the share of values of each metric that lie below a time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    figure.suptitle(title)
    for axes, (metric, label) in zip(figure.subplots(2, 2).flat, METRICS.items(), strict=True):
        values = np.sort(values_of(metric, records)) * 1000
        if len(values):
            axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post")
        axes.set_xlabel(f"{label}, ms")
        axes.set_ylabel("share below")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
    return figure
