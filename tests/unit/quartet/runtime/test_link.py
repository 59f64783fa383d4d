"""ZeroMQ links over real sockets in a private directory: restarts, garbage, failing handlers, the drain budget."""

import asyncio
import collections
import itertools
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from quartet.runtime import link
from quartet.runtime.link import DRAIN_BUDGET, Inbox, Outboxes, endpoint
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import LiveRequests, Query, SchedulerInbound
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import BOOT

SENDER = Source(Role.API, 0, Epoch(1))
NAME = "scheduler-0"


def ask(number: int) -> Query:
    return Query(number, "api-0", "timeline")


class Receiver:
    """A process with an inbox on the loop: a ZeroMQ context of its own, as a real one has."""

    def __init__(self, run_dir: str) -> None:
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.dropped: collections.Counter[str] = collections.Counter()
        self.numbers: list[int] = []
        self.batches: list[int] = []
        self.on_number: Callable[[int], None] = lambda number: None
        self.on_batch: Callable[[], None] = lambda: None
        decoder = Decoder[Any](SchedulerInbound, BOOT)
        self.inbox = Inbox(self.context, run_dir, NAME, decoder, self._take, self._end, self.dropped)

    def _take(self, source: Source, frame: Query) -> None:
        assert source == SENDER
        self.numbers.append(frame.number)
        self.on_number(frame.number)

    def _end(self) -> None:
        self.batches.append(len(self.numbers))
        self.on_batch()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)

    def die(self) -> None:
        self.inbox.close()
        self.context.destroy(linger=0)


class Rig:
    """A run directory with one sender, and receivers that come and go."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.outboxes = Outboxes(self.context, run_dir, Encoder(SENDER, BOOT))
        self.receivers: list[Receiver] = []
        self.strangers: list[zmq.Socket[bytes]] = []

    def receiver(self, is_open: bool = True) -> Receiver:
        receiver = Receiver(self.run_dir)
        self.receivers.append(receiver)
        if is_open:
            receiver.inbox.open()
        return receiver

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.outboxes.send(NAME, ask(number))

    def raw(self) -> "zmq.Socket[bytes]":
        """Return a PUSH socket to the inbox that sends any bytes."""
        raw = self.context.socket(zmq.PUSH)
        raw.connect(endpoint(self.run_dir, NAME))
        self.strangers.append(raw)
        return raw

    def close(self) -> None:
        for receiver in self.receivers:
            if not receiver.context.closed:
                receiver.die()
        self.outboxes.close()
        for stranger in self.strangers:
            stranger.close(linger=0)
        self.context.destroy(linger=0)


@pytest.fixture
async def rig(tmp_path: Path) -> Any:
    rig = Rig(str(tmp_path))
    yield rig
    rig.close()


async def test_frames_arrive_in_order(rig: Rig) -> None:
    receiver = rig.receiver()
    rig.send(*range(100))
    await receiver.until(lambda: len(receiver.numbers) == 100)
    assert receiver.numbers == list(range(100)) and not receiver.dropped


async def test_what_was_sent_before_the_bind_waits(rig: Rig) -> None:
    rig.send(1, 2, 3)
    receiver = rig.receiver()
    await receiver.until(lambda: len(receiver.numbers) == 3)
    assert receiver.numbers == [1, 2, 3]


async def test_what_came_before_the_inbox_was_opened_waits(rig: Rig) -> None:
    receiver = rig.receiver(is_open=False)
    rig.send(1, 2)
    await asyncio.sleep(0.05)
    assert receiver.numbers == []
    receiver.inbox.open()
    await receiver.until(lambda: receiver.numbers == [1, 2])


async def test_what_was_queued_for_the_dead_reaches_the_successor(rig: Rig) -> None:
    first = rig.receiver()
    rig.send(1)
    await first.until(lambda: first.numbers == [1])
    monitor = rig.outboxes._sockets[NAME].get_monitor_socket(zmq.EVENT_DISCONNECTED)
    first.die()
    assert monitor.poll(5000), "the sender never noticed"
    rig.outboxes._sockets[NAME].disable_monitor()
    monitor.close()
    rig.send(2, 3, 4)
    second = rig.receiver()
    await second.until(lambda: len(second.numbers) == 3)
    assert second.numbers == [2, 3, 4] and first.numbers == [1]


async def test_a_socket_file_left_by_a_killed_process_is_taken_over(rig: Rig) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(Path(rig.run_dir, f"{NAME}.sock")))
    receiver = rig.receiver()
    rig.send(1)
    await receiver.until(lambda: receiver.numbers == [1])


async def test_garbage_is_counted_and_the_next_frame_is_taken(rig: Rig) -> None:
    receiver, raw = rig.receiver(), rig.raw()
    alien = Encoder(SENDER, BOOT + 1).encode(ask(9))
    unwanted = Encoder(SENDER, BOOT).encode(LiveRequests("api-0", []))
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(500), alien, unwanted[:-1]):
        raw.send(data)
    raw.send(Encoder(SENDER, BOOT).encode(ask(1)))
    await receiver.until(lambda: bool(receiver.numbers))
    assert receiver.numbers == [1]
    assert receiver.dropped == {"short": 2, "magic": 1, "boot": 1, "length": 1}


async def test_the_parts_of_a_message_are_frames_each(rig: Rig) -> None:
    receiver, raw = rig.receiver(), rig.raw()
    raw.send_multipart([b"junk", Encoder(SENDER, BOOT).encode(ask(1))])
    await receiver.until(lambda: bool(receiver.numbers))
    assert receiver.numbers == [1] and receiver.dropped == {"short": 1}


async def test_a_stranger_who_speaks_no_zeromq_disturbs_nobody(rig: Rig) -> None:
    receiver = rig.receiver()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(Path(rig.run_dir, f"{NAME}.sock")))
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        rig.send(1)
        await receiver.until(lambda: receiver.numbers == [1])
    assert not receiver.dropped


async def test_a_failing_handler_is_counted_and_the_loop_goes_on(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    receiver = rig.receiver()

    def fail(number: int) -> None:
        if number == 2:
            raise ZeroDivisionError("number two")

    receiver.on_number = fail
    rig.send(1, 2, 3)
    await receiver.until(lambda: len(receiver.numbers) == 3)
    assert receiver.dropped == {"handler": 1}
    assert "number two" in caplog.text, "its cause is logged"


async def test_a_failing_end_of_batch_is_counted_and_the_loop_goes_on(rig: Rig) -> None:
    receiver = rig.receiver()
    fails = iter([True])

    def fail() -> None:
        if next(fails, False):
            raise ZeroDivisionError

    receiver.on_batch = fail
    rig.send(1)
    await receiver.until(lambda: receiver.dropped["handler"] == 1)
    rig.send(2)
    await receiver.until(lambda: receiver.numbers == [1, 2])


async def test_each_burst_ends_once(rig: Rig) -> None:
    receiver = rig.receiver(is_open=False)
    rig.send(*range(10))
    # Give the I/O thread time to bring all of them over, so that one turn finds them.
    await asyncio.sleep(0.1)
    receiver.inbox.open()
    await receiver.until(lambda: len(receiver.numbers) == 10)
    await asyncio.sleep(0.02)
    assert receiver.batches == sorted(set(receiver.batches)), "no end of a batch without a frame"
    assert receiver.batches[-1] == 10 and len(receiver.batches) < 10


async def test_others_get_their_turn_in_a_flood(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "DRAIN_BUDGET", 8)
    receiver = rig.receiver(is_open=False)
    rig.send(*range(100))
    await asyncio.sleep(0.1)
    loop, seen = asyncio.get_running_loop(), []

    def other() -> None:
        seen.append(len(receiver.numbers))
        if len(receiver.numbers) < 100:
            loop.call_soon(other)

    receiver.inbox.open()
    loop.call_soon(other)
    await receiver.until(lambda: len(receiver.numbers) == 100)
    assert receiver.numbers == list(range(100))
    assert max(after - before for before, after in itertools.pairwise([0, *receiver.batches])) <= 8
    # Right after the opening, a turn has two readings: the one by wake-up, and the one that the opening asked for.
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 16


async def test_more_than_the_budget_is_read_without_another_wake_up(rig: Rig) -> None:
    receiver = rig.receiver(is_open=False)
    count = 3 * DRAIN_BUDGET + 5
    rig.send(*range(count))
    await asyncio.sleep(0.1)
    receiver.inbox.open()
    await receiver.until(lambda: len(receiver.numbers) == count)
    assert receiver.numbers == list(range(count))


async def test_a_handler_may_send_to_its_own_inbox(rig: Rig) -> None:
    receiver = rig.receiver()
    receiver.on_number = lambda number: rig.send(number + 1) if number < 300 else None
    rig.send(0)
    await receiver.until(lambda: len(receiver.numbers) == 301)


async def test_closing_with_frames_unread_is_quiet(rig: Rig) -> None:
    receiver = rig.receiver(is_open=False)
    rig.send(*range(5))
    await asyncio.sleep(0.05)
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, complaint: complaints.append(complaint))
    receiver.inbox.open()
    receiver.die()
    await asyncio.sleep(0.01)
    assert receiver.numbers == [] and complaints == []


async def test_sending_to_nobody_never_blocks(rig: Rig) -> None:
    started = time.monotonic()
    rig.send(*range(5000))
    assert time.monotonic() - started < 2.0


async def test_what_is_too_big_is_the_senders_error(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quartet.wire.codec.MAX_FRAME_BYTES", 100)
    with pytest.raises(FrameError, match="too_big"):
        rig.outboxes.send(NAME, Query(1, "api-0", "x" * 100))


def test_an_endpoint_lies_in_the_run_directory() -> None:
    assert endpoint("/run/q", "detok-1") == "ipc:///run/q/detok-1.sock"


@pytest.fixture(autouse=True)
def debug_log(caplog: pytest.LogCaptureFixture) -> None:
    """The debug lines are formatted too: one that cannot be would fail a test."""
    caplog.set_level(logging.DEBUG, logger="quartet.runtime.link")
