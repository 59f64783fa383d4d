"""An advice as a table, and as a report in Markdown or HTML that one can pass on."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quartet.simulator.advise import Advice
from quartet.simulator.trials import Trial
from quartet.wire.errors import ConfigError

STYLE = "body{font:15px sans-serif;max-width:75em;margin:2em auto}td,th{padding:.2em .7em;text-align:right}\
td:first-child,td:nth-child(2){text-align:left}tr:nth-child(even){background:#f2f2f2}"
LEGEND = (
    "The long run is the trace from its beginning. Each other value is the mean over windows, +- half of its 95 % "
    "interval. TTFT: time to first token, of "
    "{of}. Gap: time between tokens; end to end and longest wait: of all requests; fairness: Jain's index over tenants "
    "(1: equal). A row with fewer windows was worse in those and left the race; those that are left ran the long "
    "run, which decides. `=`: a tie with the answer."
)


def header(advice: Advice) -> list[str]:
    """Return the names of the columns."""
    late = [f"gaps > {advice.target_ms:g} ms"] if advice.target_ms else []
    of = advice.class_name
    columns = (
        "",
        "configuration",
        "long run: tok/s",
        "TTFT p99",
        "out tok/s",
        f"TTFT p50, {of}",
        f"TTFT p99, {of}",
        "gap p99",
        *late,
    )
    return [*columns, "e2e p99, all", "longest wait", "fair", "retr.", "windows"]


def rows(advice: Advice) -> list[list[str]]:
    """Return a row for each configuration, those that ran the most windows and then the best first."""
    ranked = sorted(
        advice.trials, key=lambda trial: (trial.flags != advice.flags, -len(trial.windows), trial.value("ttft_p99_s"))
    )
    return [_row(advice, trial) for trial in ranked]


def _row(advice: Advice, trial: Trial) -> list[str]:
    mark = "*" if trial.flags == advice.flags else "=" if trial.flags in advice.ties else ""
    late = [f"{trial.mean('late_gaps'):.2%}"] if advice.target_ms else []
    long = trial.long
    return [
        mark,
        trial.flags.replace("--schedule-policy ", "").replace("--enable-priority-scheduling", "+ priority"),
        *(("-", "-") if long is None else (f"{long.output_tokens_per_s:.0f}", f"{long.ttft_p99_s:.3f}")),
        _value(trial, "output_tokens_per_s", ".0f"),
        _value(trial, "ttft_p50_s", ".3f"),
        _value(trial, "ttft_p99_s", ".3f"),
        _value(trial, "gap_p99_s", ".3f"),
        *late,
        _value(trial, "e2e_p99_s", ".2f"),
        _value(trial, "longest_wait_s", ".2f"),
        f"{trial.mean('fairness'):.3f}",
        f"{trial.mean('retractions'):.1f}",
        str(len(trial.windows)),
    ]


def _value(trial: Trial, name: str, form: str) -> str:
    width = f" +- {trial.half_width(name):{form}}" if len(trial.windows) > 1 else ""
    return f"{trial.mean(name):{form}}{width}"


def write_report(advice: Advice, path: Path, title: str) -> None:
    """Write the report, as HTML or Markdown by the ending, with plots where matplotlib is installed.

    Raises ConfigError for another ending or a file that cannot be written.
    """
    if path.suffix not in (".html", ".md"):
        raise ConfigError(f"--report: {path} must end in .html or .md")
    plot = _plot(advice)
    try:
        if path.suffix == ".html":
            path.write_text(_html(advice, title, plot), encoding="utf-8")
            return
        if plot:
            path.with_suffix(".png").write_bytes(plot)
        path.write_text(_markdown(advice, title, path.with_suffix(".png").name if plot else ""), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--report: {path}: {error.strerror}") from error


def _markdown(advice: Advice, title: str, plot: str) -> str:
    parts = [f"# {title}", f"**{advice.flags}**", advice.reason, advice.cost, *advice.notes]
    parts += [f"![configurations]({plot})"] if plot else []
    columns = header(advice)
    lines = [columns, ["---", "---", *["---:"] * (len(columns) - 2)], *rows(advice)]
    parts += ["\n".join("| " + " | ".join(line) + " |" for line in lines), LEGEND.format(of=advice.class_name)]
    return "\n\n".join(parts) + "\n"


def _html(advice: Advice, title: str, plot: bytes) -> str:
    texts = (advice.reason, advice.cost, *advice.notes)
    image = f'<img alt="configurations" src="data:image/png;base64,{base64.b64encode(plot).decode()}">' if plot else ""
    return (
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{html.escape(title)}</h1><p><b><code>{html.escape(advice.flags)}</code></b></p>"
        + "".join(f"<p>{html.escape(text)}</p>" for text in texts)
        + image
        + "<table>"
        + _html_row(header(advice), "th")
        + "".join(_html_row(row, "td") for row in rows(advice))
        + f"</table><p>{html.escape(LEGEND.format(of=advice.class_name))}</p>\n"
    )


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _plot(advice: Advice) -> bytes:
    """Return a PNG of throughput and p99 time to first token with their intervals; empty without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return b""
    most = max(len(trial.windows) for trial in advice.trials)
    shown = [trial for trial in advice.trials if len(trial.windows) == most]
    figure: Any = Figure(figsize=(9, 1 + 0.6 * len(shown)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    columns = (("output_tokens_per_s", "output tokens/s"), ("ttft_p99_s", f"p99 TTFT in s, {advice.class_name}"))
    for axis, (name, label) in zip(axes, columns, strict=True):
        for place, trial in enumerate(shown):
            width = trial.half_width(name) if most > 1 else 0.0
            color = "tab:red" if trial.flags == advice.flags else "tab:blue"
            axis.errorbar(trial.mean(name), place, xerr=width, fmt="o", color=color, capsize=3)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(shown)), [trial.flags.replace("--schedule-policy ", "") for trial in shown])
    axes[0].invert_yaxis()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
