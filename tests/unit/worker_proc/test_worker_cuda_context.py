"""The CUDA context that is made ahead: of the first device, and of none where there is no driver or it refuses."""

import ctypes
import threading

import pytest

from worker_proc import cuda_context

OK, NO_DEVICE = 0, 100


class Driver:
    """Notes what is asked of it."""

    def __init__(self, answer: int) -> None:
        self.asked: list[str] = []
        self._answer = answer

    def __getattr__(self, name: str):
        def call(*_: object) -> int:
            self.asked.append(name)
            return self._answer

        return call


def begin() -> None:
    cuda_context.create_context()
    for thread in threading.enumerate():
        if thread.name == "context":
            thread.join(10)


@pytest.mark.parametrize(
    ("answer", "asked"), [(OK, ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]), (NO_DEVICE, ["cuInit"])]
)
def test_the_context_is_made_unless_the_driver_refuses(monkeypatch, answer: int, asked: list[str]) -> None:
    driver = Driver(answer)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    begin()
    assert driver.asked == asked


def test_without_a_driver_nothing_happens(monkeypatch) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    begin()
    assert not failures
