"""Reports as tables for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from quartet.simulator.advice_report import header, rows
from quartet.simulator.advise import Advice
from quartet.simulator.report import Report, Summary

ADVICE_COLUMNS = 190
TEXT_COLUMNS = 2


def print_report(report: Report, title: str) -> None:
    """Print one run: totals, then times by class."""
    console = Console()
    totals = Table(title=title)
    totals.add_column("metric")
    totals.add_column("value", justify="right")
    for name, value in _totals(report):
        totals.add_row(name, value)
    times = Table(title="seconds")
    for column in ("", "mean", "p50", "p90", "p99", "max"):
        times.add_column(column, justify="right" if column else "left")
    for name, summary in _times(report):
        times.add_row(name, *_cells(summary))
    console.print(totals)
    console.print(times)


def _totals(report: Report) -> list[tuple[str, str]]:
    return [
        ("requests finished", f"{report.finished} of {report.requests}"),
        ("rejected, failed", f"{report.rejected}, {report.failed}"),
        ("duration", f"{report.duration_s:.2f} s"),
        ("output tokens/s", f"{report.output_tokens_per_s:.1f}"),
        ("input and output tokens/s", f"{report.total_tokens_per_s:.1f}"),
        ("prefix hit rate", f"{report.prefix_hit_rate:.1%}"),
        ("retractions", str(report.retractions)),
        ("preemptions", str(report.preemptions)),
        ("recomputed tokens", str(report.recomputed_tokens)),
        ("fairness between tenants (Jain)", f"{report.fairness:.3f}"),
        ("mean running, most waiting", f"{report.mean_running:.1f}, {report.max_queued}"),
        ("most often overtaken", "-" if report.overtaken.max is None else f"{report.overtaken.max:.0f} passes"),
    ]


def _times(report: Report) -> list[tuple[str, Summary]]:
    rows = [
        ("time to first token", report.ttft_s),
        ("time per output token", report.tpot_s),
        ("gap between tokens", report.gap_s),
        ("end to end", report.e2e_s),
    ]
    if len(report.e2e_s_by_class) > 1:
        rows += [(f"  first token, {name}", summary) for name, summary in report.ttft_s_by_class.items()]
        rows += [(f"  gap, {name}", summary) for name, summary in report.gap_s_by_class.items()]
        rows += [(f"  end to end, {name}", summary) for name, summary in report.e2e_s_by_class.items()]
    if len(report.ttft_s_by_tenant) > 1:
        rows += [(f"  first token, tenant {name or '-'}", summary) for name, summary in report.ttft_s_by_tenant.items()]
    return rows


def _cells(summary: Summary) -> list[str]:
    values: Sequence[float | None] = (summary.mean, summary.p50, summary.p90, summary.p99, summary.max)
    return ["-" if value is None else f"{value:.4f}" for value in values]


def print_advice(advice: Advice) -> None:
    """Print every configuration of an advice, the recommended one marked, the reason, the cost and what to doubt."""
    names, found = header(advice), rows(advice)
    table = Table(title="configurations, mean +- 95 % interval; *: the answer; =: a tie with it")
    for number, column in enumerate(names):
        table.add_column(column, justify="left" if number < TEXT_COLUMNS else "right", no_wrap=number >= TEXT_COLUMNS)
    for row in found:
        table.add_row(*row)
    # A terminal that is too narrow breaks lines, which is better than figures cut short.
    console = Console(width=max(Console().width, ADVICE_COLUMNS))
    console.print(table)
    for text in (advice.reason, advice.cost, *advice.notes):
        console.print(text, highlight=False, markup=False)
