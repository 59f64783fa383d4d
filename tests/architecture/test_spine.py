"""ARCHITECTURE.md follows a token through at most ten files: a real request, traced, makes these calls in this order.

The list names the path of a GPU; where a CPU takes another, the line says `on a CPU` and names that. Each pair of
neighbours must be connected: within a process both run under one call, between processes the latter runs while its
core handles a frame of the former's process.
"""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = r"`([\w/]+\.py): (\w+)`"
GPU_STEP = re.compile(rf"^\d+\. {NAME}")
CPU_STEP = re.compile(rf"\bon a CPU {NAME}")
PROCESSES = {
    "api_proc": "api",
    "quartet/client": "api",
    "tokenizer_proc": "tokenizer",
    "scheduler_proc": "scheduler",
    "worker_proc": "worker",
    "kernels": "worker",
    "detok_proc": "detok",
}
LIST = (ROOT / "ARCHITECTURE.md").read_text().split("## One token's path", 1)[1].split("\n## ", 1)[0]
STEPS = [" ".join(step.split()) for step in re.split(r"\n(?=\d+\. )|\n\n(?!\d)", LIST) if re.match(r"\d+\. ", step)]

Calls = dict[str, dict[str, Any]]


def path(device: str) -> list[str]:
    """Return the steps of a device as `FILE:NAME`."""
    found = [(CPU_STEP.search(step) if device == "cpu" else None) or GPU_STEP.match(step) for step in STEPS]
    return [f"{match[1]}:{match[2]}" for match in found if match is not None]


def process(step: str) -> str:
    """Return the role of the process that a step's file belongs to."""
    return next(role for folder, role in PROCESSES.items() if step.startswith(f"{folder}/"))


def fault(steps: list[str], calls: Calls) -> str | None:
    """Return what is wrong with a list of steps, by the calls that a request has made; None if they connect."""
    for step in steps:
        if step not in calls:
            return f"{step} is never called"
    for former, latter in pairwise(steps):
        one, other = calls[former], calls[latter]
        if one["order"] >= other["order"]:
            return f"{latter} is called before {former}"
        if process(former) != process(latter):
            if (other["role"], other["sender"]) != (process(latter), process(former)):
                return f"{latter} does not handle a frame that {process(former)} has sent"
        elif not set(one["around"]) & set(other["around"]):
            return f"{former} and {latter} have no caller in common"
    return None


@pytest.fixture(scope="module")
def traces() -> dict[str, Calls]:
    """Return the last call of every function in the list, on either path."""
    found = {}
    for device, backend in (("gpu", "triton"), ("cpu", "torch")):
        program = [sys.executable, "-m", "tests.architecture.token_trace", backend, *path("gpu"), *path("cpu")]
        finished = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=110)
        assert finished.returncode == 0, finished.stderr[-3000:]
        found[device] = json.loads(finished.stdout)
    return found


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_the_list_is_at_most_ten_files(device: str) -> None:
    assert len(path(device)) == len(STEPS) == len(re.findall(r"^\d+\. ", LIST, re.MULTILINE))
    assert 5 <= len({step.partition(":")[0] for step in path(device)}) <= 10


def test_every_name_in_the_list_belongs_to_a_path() -> None:
    named = {f"{file}:{name}" for file, name in re.findall(NAME, LIST)}
    assert named == {*path("gpu"), *path("cpu")}
    assert path("gpu") != path("cpu")


def test_every_file_and_folder_that_the_page_names_exists() -> None:
    named = re.findall(r"`(\w+/[\w/.]+)[`:]", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_a_request_takes_the_path(traces: dict[str, Calls], device: str) -> None:
    assert fault(path(device), traces[device]) is None


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_no_two_steps_can_change_places(traces: dict[str, Calls], device: str) -> None:
    for index in range(len(STEPS) - 1):
        steps = path(device)
        steps[index], steps[index + 1] = steps[index + 1], steps[index]
        assert fault(steps, traces[device]) is not None


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_a_function_that_no_request_calls_is_noticed(traces: dict[str, Calls], device: str) -> None:
    idle = "scheduler_proc/core/retraction.py:pick_victims"
    assert fault([*path(device)[:3], idle, *path(device)[3:]], traces[device]) == f"{idle} is never called"
    other = path("cpu" if device == "gpu" else "gpu")
    assert str(fault(other, traces[device])).endswith("is never called")


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_a_missing_process_is_noticed(traces: dict[str, Calls], device: str) -> None:
    for role in ("scheduler", "worker", "detok"):
        steps = [step for step in path(device) if process(step) != role]
        assert fault(steps, traces[device]) is not None
