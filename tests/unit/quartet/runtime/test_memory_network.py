"""The in-memory links: what they promise to the tests that stand on them."""

from typing import Any

import pytest

from quartet.runtime.memory import MemoryNetwork
from quartet.wire.codec import Encoder, Source
from quartet.wire.frames import Abort, LiveRequests, Query, SchedulerInbound
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import RID

SENDER = Source(Role.API, 0, Epoch(1))


class Inbox:
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.sources: list[Source] = []

    def take(self, source: Source, frame: Any) -> None:
        self.sources.append(source)
        self.frames.append(frame)

    @property
    def numbers(self) -> list[int]:
        return [frame.ask for frame in self.frames]


def ask(number: int) -> Query:
    return Query(number, "api-0", "timeline")


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


def bound(network: MemoryNetwork, name: str) -> Inbox:
    inbox = Inbox()
    network.bind(name, SchedulerInbound, inbox.take)
    return inbox


def test_delivery_is_in_order_and_only_when_asked(network: MemoryNetwork) -> None:
    inbox, send = bound(network, "scheduler-0"), network.sender(SENDER)
    for number in range(5):
        send("scheduler-0", ask(number))
    assert not inbox.frames and network.is_busy
    assert network.deliver() and inbox.numbers == [0]
    assert network.run_until_idle() == 4
    assert inbox.numbers == [0, 1, 2, 3, 4] and inbox.sources == [SENDER] * 5
    assert not network.is_busy and not network.deliver()


def test_frames_pass_through_the_codec(network: MemoryNetwork) -> None:
    inbox = bound(network, "scheduler-0")
    frame = LiveRequests("api-0", [])
    network.sender(SENDER)("scheduler-0", frame)
    network.run_until_idle()
    assert inbox.frames == [frame] and inbox.frames[0] is not frame


def test_what_is_sent_to_nobody_waits_for_the_bind(network: MemoryNetwork) -> None:
    network.sender(SENDER)("scheduler-0", ask(1))
    assert not network.deliver() and not network.is_busy
    inbox = bound(network, "scheduler-0")
    network.run_until_idle()
    assert inbox.numbers == [1]


def test_a_successor_gets_what_its_predecessor_did_not(network: MemoryNetwork) -> None:
    first, send = bound(network, "scheduler-0"), network.sender(SENDER)
    send("scheduler-0", ask(1))
    network.run_until_idle()
    network.unbind("scheduler-0")
    send("scheduler-0", ask(2))
    assert network.run_until_idle() == 0
    second = bound(network, "scheduler-0")
    network.run_until_idle()
    assert (first.numbers, second.numbers) == ([1], [2])


def test_waiting_frames_keep_their_order(network: MemoryNetwork) -> None:
    bound(network, "worker-0")
    send = network.sender(SENDER)
    send("scheduler-0", ask(1))
    send("worker-0", ask(0))
    send("scheduler-0", ask(2))
    network.deliver()
    inbox = bound(network, "scheduler-0")
    network.run_until_idle()
    assert inbox.numbers == [1, 2]


def test_a_missing_inbox_holds_up_nobody_else(network: MemoryNetwork) -> None:
    inbox, send = bound(network, "worker-0"), network.sender(SENDER)
    send("scheduler-0", ask(1))
    send("worker-0", ask(2))
    assert network.run_until_idle() == 1
    assert inbox.numbers == [2]


def test_unbinding_twice_is_fine(network: MemoryNetwork) -> None:
    network.unbind("scheduler-0")


def test_a_fault_may_drop(network: MemoryNetwork) -> None:
    inbox, send = bound(network, "scheduler-0"), network.sender(SENDER)
    network.fault = lambda destination, data: []
    send("scheduler-0", ask(1))
    network.fault = None
    send("scheduler-0", ask(2))
    network.run_until_idle()
    assert inbox.numbers == [2] and not network.dropped


def test_a_fault_may_duplicate(network: MemoryNetwork) -> None:
    inbox = bound(network, "scheduler-0")
    network.fault = lambda destination, data: [data, data]
    network.sender(SENDER)("scheduler-0", ask(1))
    network.run_until_idle()
    assert inbox.numbers == [1, 1]


def test_a_fault_sees_the_destination(network: MemoryNetwork) -> None:
    inbox, send = bound(network, "scheduler-0"), network.sender(SENDER)
    bound(network, "detok-0")
    network.fault = lambda destination, data: [] if destination == "detok-0" else [data]
    send("detok-0", ask(1))
    send("scheduler-0", ask(2))
    assert network.run_until_idle() == 1
    assert inbox.numbers == [2]


def test_damage_is_counted_and_not_delivered(network: MemoryNetwork) -> None:
    inbox, send = bound(network, "scheduler-0"), network.sender(SENDER)
    network.fault = lambda destination, data: [data[:-1] + b"\xc1", b"junk"]
    send("scheduler-0", ask(1))
    network.fault = None
    send("scheduler-0", ask(2))
    network.run_until_idle()
    assert inbox.numbers == [2] and network.dropped == {"crc": 1, "short": 1}


def test_a_frame_of_another_launch_is_counted(network: MemoryNetwork) -> None:
    inbox = bound(network, "scheduler-0")
    stray = Encoder(SENDER, network.boot_id + 1).encode(ask(1))
    network.fault = lambda destination, data: [stray]
    network.sender(SENDER)("scheduler-0", ask(1))
    network.run_until_idle()
    assert not inbox.frames and network.dropped == {"boot": 1}


def test_a_frame_for_another_inbox_is_counted(network: MemoryNetwork) -> None:
    inbox = bound(network, "scheduler-0")
    network.sender(SENDER)("scheduler-0", LiveRequests("api-0", []))
    network.bind("worker-0", Abort, inbox.take)
    network.sender(SENDER)("worker-0", ask(1))
    network.run_until_idle()
    assert len(inbox.frames) == 1 and network.dropped == {"type": 1}


def test_a_handlers_bug_reaches_the_test(network: MemoryNetwork) -> None:
    def fail(source: Source, frame: Any) -> None:
        raise ZeroDivisionError

    network.bind("scheduler-0", SchedulerInbound, fail)
    network.sender(SENDER)("scheduler-0", Abort(RID))
    with pytest.raises(ZeroDivisionError):
        network.run_until_idle()


def test_actors_that_never_rest_are_found(network: MemoryNetwork) -> None:
    send = network.sender(SENDER)
    network.bind("scheduler-0", SchedulerInbound, lambda source, frame: send("scheduler-0", frame))
    send("scheduler-0", ask(1))
    with pytest.raises(RuntimeError, match="still busy after 50"):
        network.run_until_idle(50)
