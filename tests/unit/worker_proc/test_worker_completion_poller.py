"""When the host polls for the end of a step: seldom, never much too late, and with an error if the device failed."""

import pytest
import torch

from worker_proc import completion_poller as module
from worker_proc.completion_poller import CompletionPoller

CPU = torch.device("cpu")


class Device:
    """Steps with known ends, a clock that only sleeping advances, and the number of polls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ends, self.polls = 100.0, 0.0, 0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(module.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        # A real sleep is late by the timer slack.
        self.now += seconds + 5e-5

    def is_done(self) -> bool:
        self.polls += 1
        return self.now >= self.ends

    def step(self, poller: CompletionPoller, takes_s: float, kind: int = 8) -> tuple[float, int]:
        """Wait for a step launched while the one before runs; return how late its end was seen, and the polls."""
        sleep = poller.waiter(kind)
        self.ends, self.polls = max(self.now, self.ends) + takes_s, 0
        sleep(self.is_done)
        poller.note_end()
        return self.now - self.ends, self.polls


@pytest.mark.parametrize("takes_s", [1e-3, 2.4e-3, 12e-3, 100e-3])
def test_the_end_of_similar_steps_is_seen_within_an_interval_by_few_polls(monkeypatch, takes_s: float) -> None:
    device, poller = Device(monkeypatch), CompletionPoller(CPU)
    for _ in range(20):
        device.step(poller, takes_s)
    for _ in range(20):
        late_s, polls = device.step(poller, takes_s)
        assert late_s <= max(takes_s / 40, 1e-4) + 1e-4
        assert polls <= 8 + takes_s / 8e-3


def test_a_shorter_step_is_not_overslept_for_long_and_a_longer_one_does_not_matter_later(monkeypatch) -> None:
    device, poller = Device(monkeypatch), CompletionPoller(CPU)
    for _ in range(20):
        device.step(poller, 12e-3)
    assert device.step(poller, 1e-3)[0] <= 8.1e-3
    for _ in range(40):
        device.step(poller, 1e-3)
    assert device.step(poller, 1e-3)[0] <= 2e-4
    device.step(poller, 500e-3)
    assert device.step(poller, 1e-3)[0] <= 5e-4


def test_kinds_have_their_own_times_and_a_finished_step_is_not_waited_for(monkeypatch) -> None:
    device, poller = Device(monkeypatch), CompletionPoller(CPU)
    for _ in range(20):
        device.step(poller, 1e-3, kind=1)
        device.step(poller, 12e-3, kind=256)
    assert device.step(poller, 1e-3, kind=1)[0] <= 2e-4
    sleep, before = poller.waiter(256), device.now
    sleep(lambda: True)
    assert device.now == before


def test_an_overdue_step_queries_the_device_for_errors(monkeypatch) -> None:
    device, poller = Device(monkeypatch), CompletionPoller(torch.device("cuda"))
    begun = device.now

    class Stream:
        def query(self) -> bool:
            if device.now > begun + 1.0:
                raise torch.AcceleratorError("an illegal memory access was encountered")
            return False

    monkeypatch.setattr(module.torch.cuda, "current_stream", lambda _: Stream())
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        poller.waiter(8)(lambda: False)
