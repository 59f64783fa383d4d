"""The table of clients in docs/api.md names the versions that tests/clients installs, and the recorded run had them."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "tests" / "clients"
PINS = re.compile(r"^([\w-]+)(?:\[[\w,]+\])?==([\d.]+)$", re.MULTILINE)


def pins() -> set[tuple[str, str]]:
    """Return (package, version) of every requirement of a client."""
    found = {pin for path in CLIENTS.glob("requirements/*.txt") for pin in PINS.findall(path.read_text())}
    npm = json.loads((CLIENTS / "requirements" / "ai" / "package.json").read_text())["dependencies"]
    alone = re.findall(r'alone="([\w-]+)==([\d.]+)"', (CLIENTS / "environments.py").read_text())
    return found | set(npm.items()) | set(alone)


def test_the_versions_are_those_of_the_requirements() -> None:
    section = (ROOT / "docs" / "api.md").read_text().partition("## Clients\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", section, re.MULTILINE))
    assert len(rows) >= 11
    assert not rows - pins()


def test_the_recorded_run_had_them_and_failed_nowhere() -> None:
    page = (CLIENTS / "results.md").read_text()
    table = re.findall(r"^\| [\w -]+ \| (.+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert len(table) >= 11
    ran = {tuple(name.replace("_", "-").split(" ")) for versions, _, _ in table for name in versions.split(", ")}
    assert ran <= pins()
    assert all(checks == passed for _, checks, passed in table)
