"""An AsyncEngine whose frames are kept, and whose answers the test writes."""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from quartet.client.async_engine import AsyncEngine, OutputStream
from quartet.client.core import ClientCore
from quartet.client.request import GenerateRequest, Output
from quartet.runtime.clock import ManualClock
from quartet.runtime.core import Sent
from quartet.wire.codec import Source
from quartet.wire.errors import RequestError
from quartet.wire.frames import (
    Accepted,
    Delta,
    DeltaItem,
    Encode,
    Encoded,
    Finish,
    IdsPrompt,
    ProcessStatus,
    ProcessTable,
    Submit,
    pack_ids,
)
from quartet.wire.ids import Epoch, Role
from tests.support.wire_samples import CONFIG, PARAMS, TIMINGS

SOURCE = Source(Role.SCHEDULER, 0, Epoch(1))
ROLES = (Role.API, Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)


def table(is_draining: bool = False, down: Role | None = None, **epochs: int) -> ProcessTable:
    return ProcessTable(
        [
            ProcessStatus(role, 0, 1, Epoch(epochs.get(role.label, 1)), "down" if role is down else "ready", "", 0)
            for role in ROLES
        ],
        is_draining,
    )


class Rig:
    """An AsyncEngine whose frames are kept, and whose answers the test writes."""

    def __init__(self, first_table: ProcessTable | None = None) -> None:
        self.clock = ManualClock()
        self.epoch = 1
        self.sent: list[tuple[str, Any]] = []
        self.outputs: list[Output] = []
        self.errors: list[RequestError] = []
        self.core = ClientCore("api-0", CONFIG.server.tokenizer_procs, CONFIG.server.detok_procs)
        self.engine = AsyncEngine(self.core, self, self.clock)
        self.announce(first_table or table())

    def send(self, sent: Iterable[Sent]) -> None:
        self.sent += sent

    def announce(self, process_table: ProcessTable) -> None:
        self.answer(process_table)

    def pass_time(self, seconds: float) -> None:
        """Let time pass; the core is ticked when it is due, as a shell does."""
        end_s = self.clock.now() + seconds
        while (due_s := self.core.next_deadline()) is not None and due_s <= end_s:
            self.clock.advance(max(0.0, due_s - self.clock.now()))
            self.send(self.core.tick(self.clock.now()))
        self.clock.advance(end_s - self.clock.now())

    def last(self, kind: type[msgspec.Struct]) -> Any:
        """Return the last frame of that type that was sent."""
        found = [frame for _, frame in self.sent if isinstance(frame, kind)]
        assert found, f"no {kind.__name__} was sent"
        return found[-1]

    def all(self, kind: type[msgspec.Struct]) -> list[Any]:
        """Return the frames of that type that were sent."""
        return [frame for _, frame in self.sent if isinstance(frame, kind)]

    def answer(self, frame: msgspec.Struct, epoch: int | None = None) -> None:
        """Deliver a frame of the scheduler: the current one, or that of an epoch."""
        if isinstance(frame, ProcessTable):
            self.epoch = next(process.epoch for process in frame.processes if process.role is Role.SCHEDULER)
        source = Source(Role.SCHEDULER, 0, Epoch(self.epoch if epoch is None else epoch))
        self.send(self.core.handle(source, frame, self.clock.now()))

    async def begin(self, n: int = 1) -> "asyncio.Task[OutputStream]":
        """Begin a request; its choices have been submitted when this returns."""
        request = GenerateRequest(prompt=IdsPrompt(pack_ids([5, 6])), params=PARAMS, n=n)
        task = asyncio.create_task(self.engine.generate(request))
        await settle()
        self.answer(Encoded(self.last(Encode).job, pack_ids([5, 6]), "ab", PARAMS))
        await settle()
        return task

    async def started(self, n: int = 1) -> OutputStream:
        """Return an accepted request whose output and errors are kept."""
        task = await self.begin(n)
        for choice in range(n):
            self.answer(Accepted(self.last(Submit).rid, choice, 0, 9))
        stream = await task
        stream.subscribe(self.outputs.extend, self.errors.append)
        return stream


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def delta(rid: Any, index: int, ids: list[int], choice: int = 0, attempt: int = 0, is_end: bool = False) -> Delta:
    finish = Finish("length", None, index + len(ids), TIMINGS) if is_end else None
    return Delta([DeltaItem(rid, choice, attempt, index, pack_ids(ids), "x" * len(ids), index, None, finish)])
