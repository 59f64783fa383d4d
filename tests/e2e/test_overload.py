"""The benchmark of overload in small, and what must hold of its figures on any machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.serving.overload", "--seconds", "8", "--drops", "300"]

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def found() -> Any:
    command = [*COMMAND, "--drop-seconds", "4", "--slow-seconds", "24"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(finished.stdout[finished.stdout.index("{\n") :].partition("\n}\n")[0] + "\n}")


def test_every_request_is_served_or_refused_with_a_time_to_retry(found: Any) -> None:
    overload = found["overload"]["overload"]
    assert overload["other"] == 0 and overload["refusal_ms"]["count"] > overload["total_ms"]["count"] > 50
    assert all(1 <= seconds <= 60 for seconds in overload["retry_after_s"])
    assert found["restarts"] == 0


def test_admitted_requests_take_as_long_as_with_a_full_queue(found: Any) -> None:
    loaded, full = (found["overload"][name]["total_ms"]["p99"] for name in ("overload", "reference"))
    assert loaded < 1.5 * full
    assert found["overload"]["recovery_s"] < 10.0


def test_refusals_are_quick(found: Any) -> None:
    """A tenth of what they took when prompts were tokenized first; the median does not see other work."""
    assert found["overload"]["overload"]["refusal_ms"]["p50"] < 30.0


def test_nothing_grows_and_nothing_is_held(found: Any) -> None:
    for part in (found["overload"], found["drops"], found["unread"], found["slow_heads"]):
        assert all(growth < 60.0 for growth in part["rss_growth_mb"].values()), part
    assert found["drops"]["failed"] == 0 and found["drops"]["live_after"] == 0


def test_slow_heads_are_closed_and_others_are_served(found: Any) -> None:
    assert found["slow_heads"]["closed"] == found["slow_heads"]["clients"]
    for part in ("unread", "slow_heads"):
        assert found[part]["others"]["other"] == 0
