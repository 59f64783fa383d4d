"""The link of an actor that blocks on its inbox in a thread of its own."""

import collections
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from quartet.runtime.link import Outboxes, ThreadLink, endpoint
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.frames import Query, SchedulerInbound, TokenizerInbound
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import BOOT

SENDER = Source(Role.API, 0, Epoch(1))
NAME = "scheduler-0"


def ask(number: int) -> Query:
    return Query(number, "api-0", "timeline")


class Thread:
    """A ThreadLink and a socket that writes to it."""

    def __init__(self, run_dir: str) -> None:
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.dropped: collections.Counter[str] = collections.Counter()
        encoder = Encoder(SENDER, BOOT)
        decoder = Decoder[Any](SchedulerInbound, BOOT)
        self.link = ThreadLink(self.context, run_dir, NAME, decoder, encoder, self.dropped)
        self.outboxes = Outboxes(self.context, run_dir, encoder)
        self.raw = self.context.socket(zmq.PUSH)
        self.raw.connect(endpoint(run_dir, NAME))

    def close(self) -> None:
        self.raw.close(linger=0)
        self.link.close()
        self.outboxes.close()
        self.context.destroy(linger=0)


@pytest.fixture
def thread(tmp_path: Path) -> Iterator[Thread]:
    thread = Thread(str(tmp_path))
    yield thread
    thread.close()


def test_a_thread_takes_a_frame_as_soon_as_it_is_there(thread: Thread) -> None:
    thread.outboxes.send(NAME, ask(1))
    started = time.monotonic()
    assert thread.link.recv(5.0) == (SENDER, ask(1))
    assert time.monotonic() - started < 4.0


def test_a_thread_waits_no_longer_than_it_said(thread: Thread) -> None:
    started = time.monotonic()
    assert thread.link.recv(0.05) is None
    assert 0.045 <= time.monotonic() - started < 2.0


def test_a_thread_that_does_not_wait_takes_only_what_is_there(thread: Thread) -> None:
    started = time.monotonic()
    assert thread.link.recv(0) is None
    assert time.monotonic() - started < 0.5
    thread.outboxes.send(NAME, ask(1))
    thread.outboxes.send(NAME, ask(2))
    assert thread.link.recv(5.0) is not None
    deadline = time.monotonic() + 5
    while (second := thread.link.recv(0)) is None and time.monotonic() < deadline:
        pass
    assert second == (SENDER, ask(2))


def test_a_thread_skips_and_counts_garbage(thread: Thread) -> None:
    thread.raw.send(b"junk")
    thread.raw.send(bytes(100))
    thread.raw.send(Encoder(SENDER, BOOT).encode(ask(3)))
    taken = None
    deadline = time.monotonic() + 5
    while taken is None and time.monotonic() < deadline:
        taken = thread.link.recv(1.0)
    assert taken == (SENDER, ask(3))
    assert thread.dropped == {"short": 1, "magic": 1}


def test_garbage_does_not_shorten_a_threads_wait(thread: Thread) -> None:
    thread.raw.send(Encoder(SENDER, BOOT).encode(ask(1)))
    assert thread.link.recv(5.0) is not None, "connected"
    garbage = threading.Timer(0.05, thread.raw.send, [b"junk"])
    started = time.monotonic()
    garbage.start()
    taken = thread.link.recv(0.5)
    waited_s = time.monotonic() - started
    garbage.join()
    assert taken is None and waited_s >= 0.45


def test_a_thread_sends_too(thread: Thread, tmp_path: Path) -> None:
    peer = ThreadLink(
        thread.context, str(tmp_path), "api-0", Decoder(TokenizerInbound, BOOT), Encoder(SENDER, BOOT), thread.dropped
    )
    thread.link.send("api-0", ask(1))
    assert peer.recv(0.3) is None, "another union's frame is counted, not delivered"
    assert thread.dropped == {"type": 1}
    peer.close()
