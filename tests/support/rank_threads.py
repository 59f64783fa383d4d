"""Ranks as threads of one process: the collectives by a barrier, rank 0's runner, and the followers of the others."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from torch import Tensor

from quartet.wire.codec import Decoder, Encoder, Source
from quartet.wire.config import Config
from quartet.wire.frames import RankInbound
from quartet.wire.ids import Epoch, Role
from tests.support.fake_context import FakeContext
from worker_proc.contract import Place, Runner, Start
from worker_proc.follower import Follower
from worker_proc.leading_runner import leading

LIMIT_S = 60.0
BOOT = 7


class Meeting:
    """Where the threads exchange values; each exchange is one turn of all ranks."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=LIMIT_S)
        self._given: list[Any] = [None] * size
        self.exchanges = 0

    @contextmanager
    def exchange(self, rank: int, value: Any) -> Iterator[list[Any]]:
        """Give a value and take those of all ranks, which stay as they are inside the block."""
        self._given[rank] = value
        self._barrier.wait()
        yield [*self._given]
        self.exchanges += rank == 0
        self._barrier.wait()

    def end(self) -> None:
        """Have the ranks that wait raise BrokenBarrierError."""
        self._barrier.abort()


class ThreadRanks:
    """worker_proc.ranks.Ranks of one thread. Sums are made in the order of the ranks, so all ranks have the same."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self._rank = meeting, rank

    def all_reduce(self, x: Tensor) -> Tensor:
        with self._meeting.exchange(self._rank, x) as parts:
            assert len({part.shape for part in parts}) == 1, "the ranks do not run the same step"
            total: Tensor = parts[0].clone()
            for part in parts[1:]:
                total += part
        return total

    def broadcast(self, x: Tensor) -> Tensor:
        with self._meeting.exchange(self._rank, x) as parts:
            assert len({part.shape for part in parts}) == 1, "the ranks do not run the same step"
            first: Tensor = parts[0].clone()
        return first

    def least(self, number: int) -> int:
        with self._meeting.exchange(self._rank, number) as numbers:
            return int(min(numbers))


class RankContext(FakeContext):
    """The context of a rank, whose frames come out of a queue of bytes."""

    def __init__(self, rank: int, config: Config) -> None:
        super().__init__(Role.WORKER, config)
        self.rank = rank
        self.inbox_bytes: queue.Queue[bytes] = queue.Queue()
        self._decode = Decoder[Any](RankInbound, BOOT).decode

    def blocking_link(self, inbound: Any) -> "RankContext":
        return self

    def recv(self, timeout_s: float) -> tuple[Source, Any] | None:
        try:
            return self._decode(self.inbox_bytes.get(timeout=timeout_s))
        except queue.Empty:
            return None


class RankThreads:
    """The ranks from 1 on of a model, each a Follower in a thread; `runner` is rank 0's, as its process has it.

    Args:
        starts: of the ranks, if they are not alike."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch, starts: Sequence[Start] = ()) -> None:
        from worker_proc import loading

        size = config.worker.tp_size
        self.meeting = meeting = Meeting(size)
        monkeypatch.setattr(loading, "Ranks", lambda place, device: ThreadRanks(meeting, place.rank))
        self.contexts = {rank: RankContext(rank, config) for rank in range(1, size)}
        self.errors: list[BaseException] = []
        starts = starts or [Start.FIRST] * size
        self.followers = [self._follower(rank, config, starts[rank]) for rank in self.contexts]
        self._threads = [threading.Thread(target=self._follow, args=(one,)) for one in self.followers]
        for thread in self._threads:
            thread.start()
        encode = Encoder(Source(Role.WORKER, 0, Epoch(1)), BOOT).encode

        def send(name: str, frame: msgspec.Struct) -> None:
            self.contexts[int(name.removeprefix("worker-"))].inbox_bytes.put(encode(frame))

        try:
            own = loading.load_runner(config, lambda: None, starts[0], place=Place(0, size, Path("/nowhere")))
        except BaseException:
            self.close()
            raise
        self.runner: Runner = leading(own, size, send)

    def _follower(self, rank: int, config: Config, start: Start) -> Follower:
        from worker_proc import loading

        place = Place(rank, config.worker.tp_size, Path("/nowhere"))
        load_runner = loading.load_runner
        return Follower(
            self.contexts[rank], lambda: load_runner(config, lambda: None, start, place=place), lambda facts: None
        )

    def _follow(self, follower: Follower) -> None:
        try:
            follower.run()
        except BaseException as error:
            self.errors.append(error)
            self.meeting.end()

    def close(self) -> None:
        """End the followers; raises what one of them has raised."""
        for follower in self.followers:
            follower.stop()
        for thread in self._threads:
            thread.join(1.0)
        self.meeting.end()
        for thread in self._threads:
            thread.join(LIMIT_S)
        if self.errors:
            raise self.errors[0]
