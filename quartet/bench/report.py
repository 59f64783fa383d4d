"""The result of a run as a table, in the rows of vLLM's and SGLang's clients."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from quartet.bench.metrics import METRICS

ROWS = (
    ("Successful requests", "completed", ""),
    ("Failed requests", "failed", ""),
    ("Maximum request concurrency", "max_concurrency", ""),
    ("Request rate configured (req/s)", "request_rate", ""),
    ("Benchmark duration (s)", "duration", ".2f"),
    ("Total input tokens", "total_input_tokens", ""),
    ("Total generated tokens", "total_output_tokens", ""),
    ("Total cached tokens", "total_cached_tokens", ""),
    ("Request throughput (req/s)", "request_throughput", ".2f"),
    ("Request goodput (req/s)", "request_goodput", ".2f"),
    ("Input token throughput (tok/s)", "input_throughput", ".2f"),
    ("Output token throughput (tok/s)", "output_throughput", ".2f"),
    ("Peak output token throughput (tok/s)", "max_output_tokens_per_s", ".2f"),
    ("Total token throughput (tok/s)", "total_token_throughput", ".2f"),
    ("Peak concurrent requests", "max_concurrent_requests", ""),
    ("Client lateness, median (ms)", "median_lateness_ms", ".2f"),
    ("Client lateness, p99 (ms)", "p99_lateness_ms", ".2f"),
    ("Wait for --max-concurrency, mean (ms)", "mean_client_queue_time_ms", ".2f"),
    ("Client's share of a core, most", "client_cpu_share", ".0%"),
)


def print_result(result: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> None:
    """Print a result: totals, the latencies named in `metrics`, and every kind of failure."""
    console = Console()
    console.print(_totals(result))
    console.print(_latencies(result, metrics, percentiles))
    for kind, count in result["errors_by_kind"].items():
        console.print(f"[red]{count} failed: {kind}[/red]", result["error_examples"][kind], sep="; ", markup=True)


def _totals(result: Mapping[str, Any]) -> Table:
    table = Table(title=f"{result['backend']}, {result['dataset_name']}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for label, name, form in ROWS:
        if result.get(name) is not None:
            table.add_row(label, format(result[name], form))
    return table


def _latencies(result: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float]) -> Table:
    facts = ["mean", "median", *(f"p{share:g}" for share in percentiles)]
    table = Table("ms", title="latencies")
    for fact in facts:
        table.add_column(fact.capitalize(), justify="right")
    for metric in metrics:
        values = [result[f"{fact}_{metric}_ms"] for fact in facts]
        table.add_row(METRICS[metric], *("-" if value is None else f"{value:.2f}" for value in values))
    return table
