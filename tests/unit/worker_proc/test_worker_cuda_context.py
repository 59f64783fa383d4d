"""The CUDA context created ahead of torch: on the first device, and not without a driver or when the driver fails."""

import ctypes
import threading

import pytest

from worker_proc import cuda_context

OK, NO_DEVICE = 0, 100


class Driver:
    """Records its calls and returns one status for all of them."""

    def __init__(self, status: int) -> None:
        self.calls: list[str] = []
        self._status = status

    def __getattr__(self, name: str):
        def call(*_: object) -> int:
            self.calls.append(name)
            return self._status

        return call


def begin() -> None:
    cuda_context.create_context()
    for thread in threading.enumerate():
        if thread.name == "context":
            thread.join(10)


@pytest.mark.parametrize(
    ("status", "calls"), [(OK, ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]), (NO_DEVICE, ["cuInit"])]
)
def test_the_context_is_created_unless_the_driver_fails(monkeypatch, status: int, calls: list[str]) -> None:
    driver = Driver(status)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    begin()
    assert driver.calls == calls


def test_without_a_driver_nothing_happens(monkeypatch) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    begin()
    assert not failures
