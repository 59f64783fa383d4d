"""Draws how long streams pause after a fault, by role, from benchmarks/results/recovery-cpu.json. Needs matplotlib.

    python -m benchmarks.plots.recovery_plot

Writes docs/images/recovery.svg: a dot for each fault, a line at what must hold at the 95th percentile.
"""

import json
import sys
from typing import Any

from benchmarks.model_configs import ROOT
from benchmarks.plots.beside_vllm import BACKGROUND, OURS, TEXT, VLLM

RESULTS = ROOT / "benchmarks" / "results" / "recovery-cpu.json"
OUT = ROOT / "docs" / "images" / "recovery.svg"
BAR = "#d1242f"


def draw_panel(axes: Any, roles: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Draw a row of dots for each role and fault."""
    names = [f"{role}, {name}" for role, faults in roles.items() for name in faults]
    found = [one for faults in roles.values() for one in faults.values()]
    for place, one in enumerate(found):
        colour = OURS if "SIGKILL" in names[place] else VLLM
        axes.scatter(one["samples_s"], [place] * len(one["samples_s"]), s=22, color=colour, alpha=0.8, linewidths=0)
        axes.plot([one["bar_s"]] * 2, [place - 0.35, place + 0.35], color=BAR, linewidth=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8, colors=TEXT)


def draw(results: dict[str, Any]) -> Any:
    """Return the figure: a panel for each launch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained", facecolor=BACKGROUND)
    panels = figure.subplots(1, len(results["models"]), sharey=True)
    for axes, (model, roles) in zip(panels, results["models"].items(), strict=True):
        draw_panel(axes, roles)
        axes.set_title(model, fontsize=10, color=TEXT)
        axes.set_xlabel("seconds to the next token; the line is the bar", fontsize=8, color=TEXT)
    return figure


def main() -> int:
    """Draw the chart and print its file."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("recovery_plot needs matplotlib: pip install matplotlib") from None
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "quartet"
    figure = draw(json.loads(RESULTS.read_text()))
    figure.savefig(OUT, facecolor=BACKGROUND, metadata={"Date": None})
    print(OUT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
