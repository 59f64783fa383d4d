"""Pictures of a run: queue, KV in use and ratio over time, and what became of each request. Needs matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quartet.runtime.installed import install_command
from quartet.simulator.driver import SimulatedEngine
from quartet.simulator.record import NEVER, Outcome, Run
from quartet.wire.errors import ConfigError

MAX_BARS = 200
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
WAITING = "lightgrey"


def save_plots(run: Run, engine: SimulatedEngine, folder: Path, title: str) -> list[Path]:
    """Write timeline and Gantt chart as PNG and SVG into `folder`, made if need be; returns the files.

    Raises ConfigError if matplotlib is not installed.
    """
    return save_figures(
        folder,
        {"timeline": lambda: draw_timeline(run, engine, title), "requests": lambda: draw_requests(run, title)},
    )


def save_figures(folder: Path, figures: Mapping[str, Callable[[], Any]]) -> list[Path]:
    """Draw figures and write each by its name as PNG and SVG into `folder`, made if need be; returns the files.

    Raises ConfigError if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(f"plots need matplotlib: {install_command('matplotlib')}") from None
    matplotlib.use("Agg")
    # Ids in the SVG come from this, so that the same run gives the same file.
    matplotlib.rcParams["svg.hashsalt"] = "quartet"
    folder.mkdir(parents=True, exist_ok=True)
    return [file for name, draw in figures.items() for file in _save(draw(), folder, name)]


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for file in files:
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def draw_timeline(run: Run, engine: SimulatedEngine, title: str) -> Any:
    """Return a figure: requests waiting and running, share of KV in use, new-token ratio, over virtual seconds."""
    from matplotlib.figure import Figure

    samples = run.timeline.samples
    times = [sample.time_s for sample in samples]
    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    top.step(times, [sample.queued for sample in samples], where="post", label="waiting")
    top.step(times, [sample.running for sample in samples], where="post", label="running")
    top.set_ylabel("requests")
    top.legend(loc="upper right")
    top.set_title(title)
    middle.fill_between(times, [sample.kv_used_tokens / engine.kv_tokens for sample in samples], step="post")
    middle.set_ylabel("KV in use")
    middle.set_ylim(0, 1.02)
    bottom.step(times, [sample.ratio for sample in samples], where="post", color="tab:green")
    bottom.set_ylabel("new-token ratio")
    bottom.set_ylim(0, 1.02)
    bottom.set_xlabel("seconds")
    return figure


def draw_requests(run: Run, title: str) -> Any:
    """Return a figure with a bar for each request: grey while it waits, its class's colour while it has a slot.

    Of more than MAX_BARS requests, as many evenly spaced ones are shown, and the extremes of each class always.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    stride = -(-len(run.outcomes) // MAX_BARS)
    shown = shown_requests(run.outcomes, stride)
    labels = sorted({outcome.request.label for outcome in run.outcomes})
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(labels)}
    figure = Figure(figsize=(10, min(12, 2 + len(shown) * 0.06)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for row, outcome in enumerate(shown):
        axes.broken_barh([(outcome.arrival_s, outcome.end_s - outcome.arrival_s)], (row, 0.9), color=WAITING)
        axes.broken_barh(_held(outcome), (row, 0.9), color=colours[outcome.request.label])
        if outcome.first_token_s != NEVER:
            axes.plot([outcome.first_token_s], [row + 0.45], marker="|", color="black", markersize=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_ylabel("requests in order of arrival" + (f", one in {stride} and the extremes" if stride > 1 else ""))
    axes.set_title(title)
    patches = [Patch(color=colours[label], label=label) for label in labels]
    axes.legend(handles=[Patch(color=WAITING, label="waiting"), *patches], loc="upper right")
    return figure


def shown_requests(outcomes: Sequence[Outcome], stride: int) -> list[Outcome]:
    """Return every `stride`-th request, and of each class those that waited and that took longest and shortest."""
    numbers = set(range(0, len(outcomes), stride))
    classes: dict[str, list[int]] = {}
    for number, outcome in enumerate(outcomes):
        classes.setdefault(outcome.request.label, []).append(number)
    for members in classes.values():
        for seconds in (_waited_s, _taken_s):
            ranked = sorted(members, key=lambda number: seconds(outcomes[number]))
            numbers |= {ranked[0], ranked[-1]}
    return [outcomes[number] for number in sorted(numbers)]


def _taken_s(outcome: Outcome) -> float:
    return outcome.end_s - outcome.arrival_s


def _waited_s(outcome: Outcome) -> float:
    return _taken_s(outcome) if outcome.first_token_s == NEVER else outcome.first_token_s - outcome.arrival_s


def _held(outcome: Outcome) -> list[tuple[float, float]]:
    """Return (start, length) of each stretch that a request held a slot; the last one ends with it."""
    starts = outcome.entered_s
    ends = [*outcome.left_s[: len(starts) - 1], outcome.end_s]
    return [(start, max(0.0, end - start)) for start, end in zip(starts, ends, strict=False)]
