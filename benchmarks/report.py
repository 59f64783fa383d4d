"""How a benchmark reports: what machine and commit its numbers belong to, and one JSON object on standard output."""

import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.model_configs import ROOT


def describe_host() -> dict[str, str]:
    """Return the device, the software and the commit that the numbers belong to; BENCH_COMMIT overrides the last."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    commit = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return {
        "device": _output(query),
        "software": ", ".join(f"{name} {_version(name)}" for name in ("torch", "triton")),
        "commit": os.environ.get("BENCH_COMMIT") or _output(commit),
    }


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def report(results: Any, path: str) -> None:
    """Print the results as JSON, and write them to `path` unless it is empty."""
    print(json.dumps(results, indent=1), flush=True)
    write_json(results, path)


def write_json(results: Any, path: str) -> None:
    """Write the results to `path` unless it is empty."""
    if path:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
