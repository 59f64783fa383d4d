"""The socketpair between supervisor and child: order, end of file, a slow peer, and a peer that is gone."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from quartet.runtime.control import MAX_MESSAGE_BYTES, ControlChannel, control_pair
from quartet.wire.errors import FrameError
from quartet.wire.frames import (
    Assignment,
    ChildInbound,
    Drain,
    Drained,
    Fatal,
    Heartbeat,
    ProcessTable,
    Ready,
    SupervisorInbound,
)
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import CONFIG

Pair = tuple[ControlChannel[Any], ControlChannel[Any]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Supervisor's channel and child's."""
    ours, theirs = control_pair()
    theirs.setblocking(False)
    yield ControlChannel(ours, SupervisorInbound), ControlChannel(theirs, ChildInbound)
    ours.close()
    theirs.close()


def beat(number: int) -> Heartbeat:
    return Heartbeat("serving", number, 0.0)


def received(channel: ControlChannel[Any]) -> list[Any]:
    """Return everything that is there to be read."""
    messages = []
    while True:
        try:
            messages.append(channel.receive())
        except BlockingIOError:
            return messages


def fill(channel: ControlChannel[Any]) -> int:
    """Send numbered heartbeats until the peer's buffer is full; returns how many fitted."""
    count = 0
    while not channel._unsent:
        channel.send(beat(count))
        count += 1
    return count - 1


def test_only_the_childs_end_is_inherited() -> None:
    ours, theirs = control_pair()
    with ours, theirs:
        assert theirs.get_inheritable() and not ours.get_inheritable()
        assert theirs.getblocking() and not ours.getblocking()


def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    supervisor, child = pair
    sent = [Assignment(1, Role.API, 0, Epoch(1), "/run", CONFIG), ProcessTable([], False, 1), Drain(2.0)]
    for message in sent:
        supervisor.send(message)
    assert received(child) == sent


def test_both_directions(pair: Pair) -> None:
    supervisor, child = pair
    sent = [beat(1), Ready({"kv_tokens": 4096}), Drained(), Fatal("no", 3)]
    for message in sent:
        child.send(message)
    assert received(supervisor) == sent
    assert received(child) == []


def test_nothing_to_read_is_not_the_end(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        pair[0].receive()


def test_the_end_comes_after_the_last_message(pair: Pair) -> None:
    supervisor, child = pair
    child.send(Fatal("last words", 3))
    child.socket.close()
    assert supervisor.receive() == Fatal("last words", 3)
    assert supervisor.receive() is None
    assert supervisor.receive() is None


def test_a_peer_that_died_without_reading_is_the_end_too(pair: Pair) -> None:
    supervisor, child = pair
    supervisor.send(ProcessTable([], False))
    child.socket.close()
    assert supervisor.receive() is None


def test_what_a_slow_peer_did_not_take_is_kept_in_order(pair: Pair) -> None:
    supervisor, child = pair
    fitted = fill(child)
    child.send(Ready({}))
    child.send(Drained())
    assert received(supervisor) == [beat(number) for number in range(fitted)]
    child.flush()
    assert received(supervisor) == [beat(fitted), Ready({}), Drained()]


def test_the_next_send_takes_along_what_waits(pair: Pair) -> None:
    supervisor, child = pair
    fitted = fill(child)
    received(supervisor)
    child.send(Drained())
    assert received(supervisor) == [beat(fitted), Drained()]


def test_an_obsolete_message_is_dropped_while_the_peer_is_slow(pair: Pair) -> None:
    supervisor, child = pair
    fitted = fill(child)
    child.send_if_possible(beat(1_000_000))
    assert received(supervisor) == [beat(number) for number in range(fitted)]
    child.flush()
    assert received(supervisor) == [beat(fitted)]


def test_an_obsolete_message_never_overtakes_one_that_must_arrive(pair: Pair) -> None:
    supervisor, child = pair
    fitted = fill(child)
    received(supervisor)
    child.send_if_possible(beat(1_000_000))
    assert received(supervisor) == [beat(fitted), beat(1_000_000)]


def test_sending_to_a_dead_peer_is_no_error(pair: Pair) -> None:
    supervisor, child = pair
    child.socket.close()
    for _ in range(2):
        supervisor.send(ProcessTable([], False))
        supervisor.send_if_possible(ProcessTable([], False))
        supervisor.flush()
    assert not supervisor._unsent, "nothing is kept for a process that is gone"


def test_what_waits_is_dropped_with_the_peer(pair: Pair) -> None:
    supervisor, child = pair
    fill(supervisor)
    supervisor.send(Drain(1.0))
    child.socket.close()
    supervisor.flush()
    assert not supervisor._unsent


def test_one_message_is_one_datagram() -> None:
    ours, theirs = control_pair()
    with ours, theirs:
        assert ours.type == socket.SOCK_SEQPACKET
        ours.send(b"a")
        ours.send(b"b")
        assert theirs.recv(10) == b"a"


def test_a_long_chat_template_fits(pair: Pair) -> None:
    supervisor, child = pair
    message = Assignment(1, Role.WORKER, 0, Epoch(1), "x" * 250_000, CONFIG)
    supervisor.send(message)
    assert received(child) == [message]


def test_a_message_that_is_too_long_is_not_lost_silently(pair: Pair) -> None:
    supervisor, child = pair
    with pytest.raises(FrameError, match="too_big"):
        supervisor.send(Assignment(1, Role.WORKER, 0, Epoch(1), "x" * MAX_MESSAGE_BYTES, CONFIG))
    supervisor.send(Drain(1.0))
    assert received(child) == [Drain(1.0)], "and it blocks nothing behind it"
