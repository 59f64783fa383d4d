"""An Engine whose frames are kept, and whose answers the test writes."""

import asyncio
from typing import Any

import msgspec

from quartet.client.engine import Engine, GenerateRequest, Output, OutputStream
from quartet.runtime.clock import ManualClock
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
    """An Engine whose frames are kept, and whose answers the test writes."""

    role, rank, epoch, name, config = Role.API, 0, Epoch(1), "api-0", CONFIG

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.process_table = table()
        self.sent: list[tuple[str, Any]] = []
        self.outputs: list[Output] = []
        self.errors: list[RequestError] = []
        self.engine = Engine(self)  # type: ignore[arg-type]
        self.engine.on_process_table(self.process_table)

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        self.sent.append((destination, frame))

    def last(self, kind: type[msgspec.Struct]) -> Any:
        """Return the last frame of that type that was sent."""
        found = [frame for _, frame in self.sent if isinstance(frame, kind)]
        assert found, f"no {kind.__name__} was sent"
        return found[-1]

    def answer(self, frame: msgspec.Struct) -> None:
        self.engine.on_frame(SOURCE, frame)

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
        generation = await task
        generation.subscribe(self.outputs.extend, self.errors.append)
        return generation


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def delta(rid: Any, index: int, ids: list[int], choice: int = 0, attempt: int = 0, is_end: bool = False) -> Delta:
    finish = Finish("length", None, index + len(ids), TIMINGS) if is_end else None
    return Delta([DeltaItem(rid, choice, attempt, index, pack_ids(ids), "x" * len(ids), index, None, finish)])
