"""Draws the README's chart, Quartet beside vLLM, from benchmarks/results/beside-vllm-h200.json. Needs matplotlib.

    python -m benchmarks.plots.beside_vllm

Writes docs/images/beside-vllm.svg, on a background of its own, so that it can be read on dark and light pages.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.model_configs import ROOT, TITLES

RESULTS = ROOT / "benchmarks" / "results" / "beside-vllm-h200.json"
OUT = ROOT / "docs" / "images" / "beside-vllm.svg"
OURS, VLLM = "#1f6feb", "#b0b7c0"
BACKGROUND, TEXT = "#ffffff", "#1f2328"
PANELS = {
    "tokens_per_s": "Output tokens per second (more is better)",
    "decode_step_ms": "Decode step by batch, ms (less is better)",
    "first_token_ms": "First token by prompt length, ms, log scale (less is better)",
}
LABELS = {
    "nano": "256\nrequests",
    "nano over HTTP": "256 over\nHTTP",
    "prefix, 10 groups": "prefix,\n10 groups",
    "prefix, 1 group": "prefix,\n1 group",
}


def mean(value: float | list[float]) -> float:
    """Return a figure, or the middle of its range."""
    return sum(value) / len(value) if isinstance(value, list) else value


def draw_bars(axes: Any, rows: dict[str, dict[str, Any]], is_log: bool) -> None:
    """Draw a pair of bars for each row of a result, with their figures."""
    for side, (engine, colour) in enumerate((("quartet", OURS), ("vllm", VLLM))):
        values = [mean(row[engine]) for row in rows.values()]
        bars = axes.bar([place + (side - 0.5) * 0.42 for place in range(len(rows))], values, 0.4, color=colour)
        labels = [f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.3g}" for value in values]
        axes.bar_label(bars, labels, fontsize=7, color=TEXT, padding=1)
    axes.set_xticks(range(len(rows)), [LABELS.get(name) or f"{int(name):,}" for name in rows])
    if is_log:
        axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.yaxis.set_visible(False)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8, colors=TEXT)


def draw(results: dict[str, Any]) -> Any:
    """Return the figure: a row of panels for each model."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11.5, 5.4), layout="constrained", facecolor=BACKGROUND)
    rows = figure.subfigures(len(TITLES) + 1, 1, height_ratios=[1] * len(TITLES) + [0.16])
    for row, (model, title) in zip(rows, TITLES.items(), strict=False):
        row.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold", color=TEXT)
        for axes, (kind, heading) in zip(row.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            draw_bars(axes, results[kind][model], is_log=kind == "first_token_ms")
            axes.set_title(heading, fontsize=9, color=TEXT)
    quartet, vllm = results["versions"]["quartet"], results["versions"]["vllm"]
    entries = [Patch(color=OURS, label=f"Quartet ({quartet})"), Patch(color=VLLM, label=f"vLLM {vllm}")]
    rows[-1].legend(handles=entries, loc="center left", ncols=2, frameon=False, fontsize=9, labelcolor=TEXT)
    note = f"{results['device'].partition(',')[0]}, {results['date']}, same machine and launch;\n"
    note += "bf16, random weights, vLLM as it configures itself"
    rows[-1].text(0.99, 0.5, note, ha="right", va="center", fontsize=8, color=TEXT)
    return figure


def main() -> int:
    """Draw the chart and print its file."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("beside_vllm needs matplotlib: pip install matplotlib") from None
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "quartet"
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(json.loads(Path(RESULTS).read_text()))
    figure.savefig(OUT, facecolor=BACKGROUND, metadata={"Date": None})
    print(OUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
