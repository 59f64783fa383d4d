"""An inbox whose socket file is deleted can be reached again; what was connected before stays connected."""

import asyncio
import collections
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from quartet.runtime.link import Inbox, Outboxes, ThreadLink, endpoint
from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.frames import Query, SchedulerInbound
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import BOOT

NAME = "scheduler-0"
ENCODER = Encoder(Source(Role.API, 0, Epoch(1)), BOOT)


class Rig:
    """A run directory, an inbox in it, and senders."""

    def __init__(self, run_dir: Path, kind: str) -> None:
        self.run_dir = run_dir
        self.file = Path(endpoint(str(run_dir), NAME).removeprefix("ipc://"))
        self.context = zmq.Context[zmq.Socket[bytes]]()
        self.numbers: list[int] = []
        self.senders: list[Outboxes] = []
        decoder, dropped = Decoder[Any](SchedulerInbound, BOOT), collections.Counter[str]()
        self.link: Inbox | ThreadLink
        if kind == "loop":
            take = lambda source, frame: self.numbers.append(frame.number)  # noqa: E731
            self.link = Inbox(self.context, str(run_dir), NAME, decoder, take, lambda: None, dropped)
            self.link.open()
        else:
            self.link = ThreadLink(self.context, str(run_dir), NAME, decoder, ENCODER, dropped)

    def sender(self) -> Callable[[int], None]:
        self.senders.append(Outboxes(zmq.Context[zmq.Socket[bytes]](), str(self.run_dir), ENCODER))
        return lambda number, sender=self.senders[-1]: sender.send(NAME, Query(number, "api-0", "x"))  # type: ignore[misc]

    async def comes(self, number: int, limit_s: float = 5.0) -> bool:
        deadline = asyncio.get_running_loop().time() + limit_s
        while asyncio.get_running_loop().time() < deadline:
            if isinstance(self.link, ThreadLink) and (taken := self.link.recv(0.01)):
                self.numbers.append(taken[1].number)
            if number in self.numbers:
                return True
            await asyncio.sleep(0.002)
        return False

    def close(self) -> None:
        self.link.close()
        for sender in self.senders:
            sender.close()
            sender._context.destroy(linger=0)
        self.context.destroy(linger=0)


@pytest.fixture(params=["loop", "thread"])
async def rig(request: pytest.FixtureRequest) -> Any:
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        run_dir = Path(base, "run")
        run_dir.mkdir()
        rig = Rig(run_dir, request.param)
        yield rig
        rig.close()


async def test_a_deleted_file_is_bound_again(rig: Rig) -> None:
    early = rig.sender()
    early(1)
    assert await rig.comes(1)
    rig.file.unlink()
    early(2)
    assert await rig.comes(2), "a connection needs no file"
    late = rig.sender()
    late(3)
    assert not await rig.comes(3, 0.2)
    rig.link.keep_reachable()
    assert await rig.comes(3)
    early(4)
    assert await rig.comes(4)


async def test_a_deleted_folder_is_waited_for(rig: Rig) -> None:
    shutil.rmtree(rig.run_dir)
    late = rig.sender()
    late(1)
    rig.link.keep_reachable()
    assert not await rig.comes(1, 0.2)
    rig.run_dir.mkdir()
    rig.link.keep_reachable()
    assert await rig.comes(1)


async def test_the_file_of_another_socket_is_replaced(rig: Rig) -> None:
    other = zmq.Context[zmq.Socket[bytes]]()
    pull = other.socket(zmq.PULL)
    pull.bind(endpoint(str(rig.run_dir), NAME))
    rig.link.keep_reachable()
    assert not await rig.comes(0, 0.05)
    rig.sender()(1)
    assert await rig.comes(1)
    pull.close(linger=0)
    other.term()


async def test_a_file_that_is_there_is_left_alone(rig: Rig) -> None:
    before = os.stat(rig.file).st_ino
    for _ in range(3):
        rig.link.keep_reachable()
        assert not await rig.comes(0, 0.02)
    assert os.stat(rig.file).st_ino == before
