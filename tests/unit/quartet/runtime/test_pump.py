"""The pump and the in-memory wire: what they promise to the engines and tests that stand on them."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from quartet.runtime.clock import ManualClock
from quartet.runtime.core import Metrics, Sent
from quartet.runtime.memory import MemoryWire
from quartet.runtime.pump import Pump
from quartet.wire.codec import Encoder, Source
from quartet.wire.frames import Abort, LiveRequests, ProcessTable, Query, SchedulerInbound
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import RID

SENDER = Source(Role.API, 0, Epoch(1))
OWN = Source(Role.SCHEDULER, 0, Epoch(1))


class Inbox:
    """A core that keeps what arrives; `react` makes its answers, `due_s` is its deadline."""

    def __init__(self, inbound: Any = SchedulerInbound) -> None:
        self.inbound = inbound
        self.frames: list[Any] = []
        self.sources: list[Source] = []
        self.times: list[float] = []
        self.ticks: list[float] = []
        self.due_s: float | None = None
        self.react: Callable[[Any], list[Sent]] = lambda frame: []

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        self.sources.append(source)
        self.frames.append(frame)
        self.times.append(now)
        return self.react(frame)

    def tick(self, now: float) -> list[Sent]:
        self.ticks.append(now)
        self.due_s = None
        return self.react(None)

    def next_deadline(self) -> float | None:
        return self.due_s

    def is_idle(self) -> bool:
        return True

    def metrics(self) -> Metrics:
        return Metrics({}, {})

    @property
    def numbers(self) -> list[int]:
        return [frame.number for frame in self.frames]


class Network(Pump):
    """A pump on the in-memory wire, with one sender outside of it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.wire = MemoryWire()
        super().__init__(self.clock, self.wire)

    def post(self, destination: str, frame: msgspec.Struct) -> None:
        self.send(SENDER, [(destination, frame)])


def ask(number: int) -> Query:
    return Query(number, "api-0", "timeline")


@pytest.fixture
def network() -> Network:
    return Network()


def bound(network: Network, name: str) -> Inbox:
    inbox = Inbox()
    network.add(name, OWN, inbox)
    return inbox


def test_delivery_is_in_order_and_only_when_asked(network: Network) -> None:
    inbox, send = bound(network, "scheduler-0"), network.post
    for number in range(5):
        send("scheduler-0", ask(number))
    assert not inbox.frames and network.is_busy
    assert network.deliver() and inbox.numbers == [0]
    assert network.run() == 4
    assert inbox.numbers == [0, 1, 2, 3, 4] and inbox.sources == [SENDER] * 5
    assert not network.is_busy and not network.deliver()


def test_frames_pass_through_the_codec(network: Network) -> None:
    inbox = bound(network, "scheduler-0")
    frame = LiveRequests("api-0", [])
    network.post("scheduler-0", frame)
    network.run()
    assert inbox.frames == [frame] and inbox.frames[0] is not frame


def test_what_is_sent_to_nobody_waits_for_the_bind(network: Network) -> None:
    network.post("scheduler-0", ask(1))
    assert not network.deliver() and not network.is_busy
    inbox = bound(network, "scheduler-0")
    network.run()
    assert inbox.numbers == [1]


def test_a_successor_gets_what_its_predecessor_did_not(network: Network) -> None:
    first, send = bound(network, "scheduler-0"), network.post
    send("scheduler-0", ask(1))
    network.run()
    network.remove("scheduler-0")
    send("scheduler-0", ask(2))
    assert network.run() == 0
    second = bound(network, "scheduler-0")
    network.run()
    assert (first.numbers, second.numbers) == ([1], [2])


def test_waiting_frames_keep_their_order(network: Network) -> None:
    bound(network, "worker-0")
    send = network.post
    send("scheduler-0", ask(1))
    send("worker-0", ask(0))
    send("scheduler-0", ask(2))
    network.deliver()
    inbox = bound(network, "scheduler-0")
    network.run()
    assert inbox.numbers == [1, 2]


def test_a_missing_inbox_holds_up_nobody_else(network: Network) -> None:
    inbox, send = bound(network, "worker-0"), network.post
    send("scheduler-0", ask(1))
    send("worker-0", ask(2))
    assert network.run() == 1
    assert inbox.numbers == [2]


def test_unbinding_twice_is_fine(network: Network) -> None:
    network.remove("scheduler-0")


def test_a_fault_may_drop(network: Network) -> None:
    inbox, send = bound(network, "scheduler-0"), network.post
    network.wire.fault = lambda destination, data: []
    send("scheduler-0", ask(1))
    network.wire.fault = None
    send("scheduler-0", ask(2))
    network.run()
    assert inbox.numbers == [2] and not network.dropped


def test_a_fault_may_duplicate(network: Network) -> None:
    inbox = bound(network, "scheduler-0")
    network.wire.fault = lambda destination, data: [data, data]
    network.post("scheduler-0", ask(1))
    network.run()
    assert inbox.numbers == [1, 1]


def test_a_fault_sees_the_destination(network: Network) -> None:
    inbox, send = bound(network, "scheduler-0"), network.post
    bound(network, "detok-0")
    network.wire.fault = lambda destination, data: [] if destination == "detok-0" else [data]
    send("detok-0", ask(1))
    send("scheduler-0", ask(2))
    assert network.run() == 1
    assert inbox.numbers == [2]


def test_damage_is_counted_and_not_delivered(network: Network) -> None:
    inbox, send = bound(network, "scheduler-0"), network.post
    network.wire.fault = lambda destination, data: [data[:-1] + b"\xc1", b"junk"]
    send("scheduler-0", ask(1))
    network.wire.fault = None
    send("scheduler-0", ask(2))
    network.run()
    assert inbox.numbers == [2] and network.dropped == {"crc": 1, "short": 1}


def test_a_frame_of_another_launch_is_counted(network: Network) -> None:
    inbox = bound(network, "scheduler-0")
    stray = Encoder(SENDER, network.wire.boot_id + 1).encode(ask(1))
    network.wire.fault = lambda destination, data: [stray]
    network.post("scheduler-0", ask(1))
    network.run()
    assert not inbox.frames and network.dropped == {"boot": 1}


def test_a_frame_for_another_inbox_is_counted(network: Network) -> None:
    inbox = bound(network, "scheduler-0")
    network.post("scheduler-0", LiveRequests("api-0", []))
    network.add("worker-0", OWN, other := Inbox(Abort))
    network.post("worker-0", ask(1))
    network.run()
    assert len(inbox.frames) == 1 and not other.frames and network.dropped == {"type": 1}


def test_a_cores_bug_reaches_the_test(network: Network) -> None:
    bound(network, "scheduler-0").react = lambda frame: [][1]
    network.post("scheduler-0", Abort(RID))
    with pytest.raises(IndexError):
        network.run()


def test_cores_that_never_rest_are_found(network: Network) -> None:
    bound(network, "scheduler-0").react = lambda frame: [("scheduler-0", frame)]
    network.post("scheduler-0", ask(1))
    with pytest.raises(RuntimeError, match="still busy after 50"):
        network.run(limit=50)


def test_answers_carry_the_source_of_their_core(network: Network) -> None:
    api = bound(network, "api-0")
    bound(network, "scheduler-0").react = lambda frame: [("api-0", frame)]
    network.post("scheduler-0", ask(3))
    assert network.run() == 2
    assert (api.numbers, api.sources) == ([3], [OWN])


def test_a_core_is_ticked_when_no_frame_waits_and_its_deadline_has_come(network: Network) -> None:
    inbox = bound(network, "scheduler-0")
    inbox.due_s = 2.0
    network.post("scheduler-0", ask(1))
    assert network.run() == 1 and not inbox.ticks and network.next_deadline() == 2.0
    network.clock.advance(2.0)
    network.run()
    assert inbox.ticks == [2.0]


def test_virtual_time_moves_from_deadline_to_deadline(network: Network) -> None:
    first, second = bound(network, "scheduler-0"), bound(network, "worker-0")
    first.due_s, second.due_s = 3.0, 1.0
    second.react = lambda frame: [("scheduler-0", ask(1))]
    network.run(lambda due_s: network.clock.advance(due_s - network.clock.now()))
    assert (first.times, first.ticks, second.ticks) == ([1.0], [3.0], [1.0])


def test_equal_deadlines_are_ticked_in_the_order_of_adding(network: Network) -> None:
    order: list[str] = []
    for name in ("b-0", "a-0"):
        inbox = bound(network, name)
        inbox.due_s = 0.0
        inbox.react = lambda frame, name=name: order.append(name) or []  # type: ignore[misc]
    network.run()
    assert order == ["b-0", "a-0"]


def test_the_process_table_reaches_every_core(network: Network) -> None:
    inboxes = [bound(network, "scheduler-0"), bound(network, "worker-0")]
    table = ProcessTable([], True)
    network.announce(table)
    assert all(inbox.frames == [table] and inbox.sources[0].role is Role.SUPERVISOR for inbox in inboxes)
