"""Plots of GPU results beside vLLM, the goals and the floors. Needs matplotlib.

    python -m benchmarks.plots.gpu_plot RESULTS.json [MORE.json ...] [--out docs/gpu-plots]

Each file holds one JSON object with any of these keys; several files are read as one:

    launches   launches as the gpu_*.py commands write them
    kernels    rows {"case", "us"} with the cases of benchmarks/kernels/kernel_times.py, whose files call them `timings`

Writes a PNG for each kind of result in them: decode-step, throughput, first-token, attention. Of several readings of
one figure the median is drawn; the thin line spans the least and the most.
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.model_configs import ROOT, TITLES
from benchmarks.plots import attention_plot
from benchmarks.serving.speed_to_beat import (
    DECODE,
    FIRST_TOKEN_GOAL,
    FIRST_TOKEN_VLLM,
    NANO,
    NANO_HTTP,
    ONE_GROUP,
    TEN_GROUPS,
    THROUGHPUT,
)

OUT = ROOT / "docs" / "gpu-plots"
OURS, VLLM, GOAL, FLOOR = "tab:blue", "tab:orange", "tab:green", "grey"

Launches = list[dict[str, Any]]


class Reading(NamedTuple):
    """The median of the readings of one figure, and their bounds."""

    median: float
    least: float
    most: float

    @property
    def error(self) -> tuple[float, float]:
        """The distances below and above the median, for error bars."""
        return self.median - self.least, self.most - self.median


def results(launches: Launches, model: str, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the results of one kind."""
    for launch in launches:
        if launch["model"] == model:
            yield from (result for result in launch["results"] if result["kind"] == kind)


def readings(pairs: Iterator[tuple[Any, list[float]]]) -> dict[Any, Reading]:
    """Gather (key, values) pairs into one reading for each key, in the order of the keys."""
    gathered: dict[Any, list[float]] = defaultdict(list)
    for key, values in pairs:
        gathered[key] += values
    found = ((key, gathered[key]) for key in sorted(gathered) if gathered[key])
    return {key: Reading(statistics.median(values), min(values), max(values)) for key, values in found}


def decode_steps(launches: Launches, model: str) -> dict[int, Reading]:
    """Return milliseconds by batch."""
    return readings((one["batch"], [one["step_ms"]]) for one in results(launches, model, "decode"))


def first_tokens(launches: Launches, model: str) -> dict[int, Reading]:
    """Return milliseconds by prompt tokens."""
    found = results(launches, model, "ttft")
    return readings((one["prompt"], [one["ttft_ms"], one["least"], one["most"]]) for one in found)


def throughputs(launches: Launches, model: str) -> dict[str, Reading]:
    """Return output tokens a second by the workload's name."""

    def pairs() -> Iterator[tuple[str, list[float]]]:
        for kind in ("nano", "shared_prefix"):
            for one in results(launches, model, kind):
                if name := _workload(one):
                    yield name, [each["tokens_per_s"] for each in one["passes_found"]]

    found = readings(pairs())
    return {name: found[name] for name in (NANO, NANO_HTTP, TEN_GROUPS, ONE_GROUP) if name in found}


def _workload(result: dict[str, Any]) -> str | None:
    """Return the name in the plot, or None for a result that is not drawn: other groups, or the prefix cache off."""
    if result["kind"] == "nano":
        return NANO_HTTP if result.get("path") == "http" else NANO
    if not any(one["hit_rate"] for one in result["passes_found"]):
        return None
    return {10: TEN_GROUPS, 1: ONE_GROUP}.get(result["groups"])


def draw_decode(axes: Any, launches: Launches, model: str) -> None:
    """Draw steps by batch as lines."""
    found = decode_steps(launches, model)
    beside = {batch: DECODE[model][batch] for batch in found if batch in DECODE[model]}
    _line(axes, {batch: one.vllm for batch, one in beside.items()}, "vLLM", VLLM, "s-")
    _line(axes, {batch: one.goal for batch, one in beside.items()}, "goal", GOAL, "--")
    _line(axes, {batch: one.floor for batch, one in beside.items()}, "floor", FLOOR, ":")
    _our_line(axes, found)
    axes.set_xlabel("batch")
    axes.set_ylabel("decode step, ms")


def draw_first_token(axes: Any, launches: Launches, model: str) -> None:
    """Draw the time to the first token by prompt as lines."""
    found = first_tokens(launches, model)
    _line(axes, {key: ms for key, ms in FIRST_TOKEN_VLLM[model].items() if key in found}, "vLLM", VLLM, "s-")
    _line(axes, {key: ms for key, ms in FIRST_TOKEN_GOAL[model].items() if key in found}, "goal", GOAL, "--")
    _our_line(axes, found)
    axes.set_xlabel("prompt, tokens")
    axes.set_ylabel("first token of one request alone, ms")


def _our_line(axes: Any, found: dict[int, Reading]) -> None:
    errors = list(zip(*(one.error for one in found.values()), strict=True))
    axes.errorbar(list(found), [one.median for one in found.values()], errors, fmt="o-", label="Quartet", color=OURS)
    for key, one in found.items():
        place = {"textcoords": "offset points", "xytext": (0, -14), "ha": "center", "fontsize": 8}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.annotate(f"{one.median:.3g}", (key, one.median), color=OURS, bbox=box, **place)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(found), [f"{key:,}" for key in found])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.grid(alpha=0.3)


def _line(axes: Any, values: dict[int, float], label: str, colour: str, style: str) -> None:
    axes.plot(list(values), list(values.values()), style, label=label, color=colour, markersize=4)


def draw_throughput(axes: Any, launches: Launches, model: str) -> None:
    """Draw tokens a second as bars, with lines across them for goal and roofline."""
    found = throughputs(launches, model)
    for place, (name, one) in enumerate(found.items()):
        beside = THROUGHPUT[model][name]
        _bar(axes, place - 0.2, one.median, OURS, "Quartet" if not place else None)
        axes.errorbar([place - 0.2], [one.median], [[error] for error in one.error], color="black")
        if beside.vllm is not None:
            _bar(axes, place + 0.2, beside.vllm, VLLM, None)
        for value, colour, style in ((beside.goal, GOAL, "--"), (beside.roofline, FLOOR, ":")):
            if value is not None:
                axes.hlines(value, place - 0.42, place + 0.42, color=colour, linestyle=style)
    for colour, style, label in ((VLLM, "s", "vLLM"), (GOAL, "--", "goal"), (FLOOR, ":", "roofline")):
        axes.plot([], [], style, color=colour, label=label)
    axes.set_xticks(range(len(found)), [name.replace(", ", ",\n") for name in found])
    axes.set_ylabel("output tokens a second")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)


def _bar(axes: Any, place: float, value: float, colour: str, label: str | None) -> None:
    axes.bar([place], [value], width=0.38, color=colour, label=label)
    axes.annotate(f"{value:,.0f}", (place, value / 2), ha="center", fontsize=8, color="white")


def draw_models(launches: Launches, has: Callable[[Launches, str], Any], draw: Callable[..., None]) -> Any:
    """Return a figure with one panel for each model that has such results, or None."""
    from matplotlib.figure import Figure

    models = [model for model in TITLES if has(launches, model)]
    if not models:
        return None
    figure = Figure(figsize=(6 * len(models), 5), dpi=100, layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        draw(axes, launches, model)
        axes.set_title(TITLES[model])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def save_plots(launches: Launches, kernels: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the plots into `folder` and return the files."""
    figures = {
        "decode-step": draw_models(launches, decode_steps, draw_decode),
        "throughput": draw_models(launches, throughputs, draw_throughput),
        "first-token": draw_models(launches, first_tokens, draw_first_token),
        "attention": attention_plot.draw_attention(kernels),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures.items():
        if figure is not None:
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1])
    return files


def read_results(paths: list[str]) -> tuple[Launches, list[dict[str, Any]]]:
    """Return the launches and the kernel rows of all files."""
    launches, kernels = [], []
    for path in paths:
        found = json.loads(Path(path).read_text())
        launches += found.get("launches", [])
        kernels += found.get("kernels", found.get("timings", []))
    return launches, kernels


def main(arguments: list[str]) -> int:
    """Draw, and print the names of the files; 1 if there is nothing to draw."""
    parser = argparse.ArgumentParser(description="plots of GPU results")
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", default=str(OUT), help="folder, default: docs/gpu-plots")
    options = parser.parse_args(arguments)
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("gpu_plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    files = save_plots(*read_results(options.results), Path(options.out))
    print("\n".join(map(str, files)) or "nothing to draw")
    return int(not files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
