"""When the CUDA graphs of a kind of step are captured: all at once, or each at its first need. Off CUDA, with stubs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch

from worker_proc.graphs import StepGraphs

SIZES = [1, 2, 4]
POOL = cast(Any, "pool")


class StubGraph:
    """Logs its replays."""

    log: list[str]
    size = 0

    def replay(self) -> None:
        self.log.append(f"replay {self.size}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events: list[str] = []

    @contextlib.contextmanager
    def capture(graph: StubGraph, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert pool is POOL and capture_error_mode
        graph.log = events
        before = len(events)
        yield
        (run,) = events[before:]
        graph.size = int(run.split()[1])
        events[before:] = [f"capture {graph.size}"]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StubGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return events


class Graphs:
    """StepGraphs with a run that logs."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.inner = StepGraphs(SIZES)
        self.capture_at_need = self.inner.capture_at_need

    def run(self, size: int) -> None:
        self.log.append(f"run {size}")

    def capture(self, progress: Callable[[], None]) -> None:
        self.inner.capture(self.run, POOL, progress)

    def launch(self, size: int, num_rows: int) -> None:
        self.inner.launch(self.run, size, num_rows)

    def prepare_next(self, begin: Callable[[], None]) -> bool:
        return self.inner.prepare_next(self.run, begin)


def test_without_graphs_a_step_runs_with_its_own_rows(log: list[str]) -> None:
    Graphs(log).launch(4, 3)
    assert log == ["run 3"]
    assert not Graphs(log).prepare_next(lambda: log.append("begin"))


def test_all_are_captured_at_once_the_largest_first(log: list[str]) -> None:
    it = Graphs(log)
    it.capture(lambda: log.append("progress"))
    assert log == ["capture 4", "progress", "capture 2", "progress", "capture 1", "progress"]
    log.clear()
    it.launch(2, 2)
    assert log == ["replay 2"]
    assert not it.prepare_next(lambda: log.append("begin"))


def test_with_kernels_a_size_is_captured_when_a_step_needs_it(log: list[str]) -> None:
    it = Graphs(log)
    it.capture_at_need(POOL, has_kernels=True)
    for _ in range(2):
        it.launch(2, 2)
    assert log == ["capture 2", "replay 2", "replay 2"]


def test_without_kernels_the_first_step_of_a_size_loads_them(log: list[str]) -> None:
    it = Graphs(log)
    it.capture_at_need(POOL, has_kernels=False)
    for _ in range(3):
        it.launch(4, 3)
    assert log == ["run 4", "capture 4", "replay 4", "replay 4"], "padded, as the graph is"


def test_the_rest_is_captured_in_steps_without_rows(log: list[str]) -> None:
    it = Graphs(log)
    it.capture_at_need(POOL, has_kernels=False)
    it.launch(2, 2)
    it.launch(2, 2)
    log.clear()
    while it.prepare_next(lambda: log.append("begin")):
        log.append("|")
    four = ["begin", "run 4", "begin", "capture 4", "replay 4"]
    one = ["begin", "run 1", "begin", "capture 1", "replay 1"]
    assert log == [*four, "|", *one, "|"]
