"""The files that are made from the table of metrics are the committed ones, and query nothing that is not in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_proc.admin.families import FAMILIES
from scripts.observability import files

ROOT = Path(__file__).parents[3]
PARTS = {"gauge": [""], "counter": [""], "histogram": ["_bucket", "_sum", "_count"]}
SAMPLES = {family.exported + part for family in FAMILIES.values() for part in PARTS[family.kind]}
LABELS = {label for family in FAMILIES.values() for label in family.labels} | {
    "le",
    "process",
    "model_name",
    "instance",
}


@pytest.mark.parametrize("name", files())
def test_the_committed_file_is_what_the_script_makes(name: str) -> None:
    assert (ROOT / name).read_text() == files()[name], "run `python -m scripts.observability`"


def check(expression: str, legend: str = "") -> None:
    named = re.findall(r"quartet_\w+", expression)
    assert [name for name in named if name not in SAMPLES] == [] and (named or expression.startswith("up{"))
    grouped = [label for found in re.findall(r"by \(([^)]*)\)", expression) for label in found.split(", ")]
    shown = re.findall(r"{{(?: \$labels\.)?(\w+) ?}}", legend)
    assert {*grouped, *shown} <= LABELS


def test_every_query_of_the_dashboard_names_what_is_exported() -> None:
    panels: list[dict[str, Any]] = json.loads((ROOT / "deploy/grafana/quartet.json").read_text())["panels"]
    queries = [target for panel in panels for target in panel.get("targets", [])]
    assert len(queries) > 30 and len({panel["id"] for panel in panels}) == len(panels)
    for query in queries:
        check(query["expr"], query["legendFormat"])


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((ROOT / "deploy/grafana/quartet.json").read_text())["panels"]:
        x, y, w, h = (panel["gridPos"][name] for name in "xywh")
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not cells & taken and x + w <= 24, panel["title"]
        taken |= cells


def test_alerts_name_what_is_exported() -> None:
    (group,) = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        check(rule["expr"], rule["annotations"]["summary"])
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "quartet"
