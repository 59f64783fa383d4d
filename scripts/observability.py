"""Makes what follows from the table of metrics (api_proc.admin.families): its page, the dashboard, the alert rules.

`python -m scripts.observability` writes the files; a test compares them with what is committed.
"""

from pathlib import Path

from api_proc.admin.aliases import ALIASES, Alias
from api_proc.admin.families import FAMILIES, SECTIONS, Family
from scripts.alerts import rules, scrape_example
from scripts.dashboard import dashboard

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Metrics

`GET /metrics` in Prometheus' text format. This page is made by `python -m scripts.observability`.

Every sample has `model_name`; those of a process have `process`, such as `api-0`. Labels beside these are in braces.
"""
ALIAS_HEAD = """
## Names of other engines

With `--metrics-alias`, beside our own, summed over the processes:
"""


def files() -> dict[str, str]:
    """Return what is made, by path from the root."""
    return {
        "docs/metrics.md": metrics_page(),
        "deploy/grafana/quartet.json": dashboard(),
        "deploy/prometheus/alerts.yml": rules(),
        "deploy/prometheus/prometheus.yml": scrape_example(),
    }


def metrics_page() -> str:
    """Return docs/metrics.md."""
    parts = [HEAD]
    for title, families in SECTIONS.items():
        rows = [f"| {_shown(family)} | {family.kind} | {family.help} |" for family in families]
        parts.append("\n".join(["", f"## {title}", "", "| name | kind | meaning |", "|---|---|---|", *rows, ""]))
    parts.append(ALIAS_HEAD)
    for engine, aliases in ALIASES.items():
        if aliases:
            rows = [f"| `{_total(alias)}` | `{FAMILIES[alias.family].exported}` |" for alias in aliases]
            parts.append("\n".join(["", f"| {engine} | ours |", "|---|---|", *rows, ""]))
    return "".join(parts)


def _shown(family: Family) -> str:
    labels = "{" + ",".join(family.labels) + "}" if family.labels else ""
    return f"`{family.exported}{labels}`"


def _total(alias: Alias) -> str:
    return alias.name + ("_total" if FAMILIES[alias.family].kind == "counter" else "")


def main() -> None:
    """Write the files."""
    for name, text in files().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
