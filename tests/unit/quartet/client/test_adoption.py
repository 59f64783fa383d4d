"""The successor of an api process goes on with its requests, whatever else dies, and gives each token once."""

import asyncio
from array import array

import pytest
from msgspec import structs

from quartet.client.adoption import Adopted, Progress
from quartet.client.async_engine import OutputStream
from quartet.client.request import GenerateRequest, Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import IdsPrompt, SamplingParams
from quartet.wire.ids import Role
from tests.support.memory_engine import MemoryEngine
from worker_proc.simulated import HashModel

MODEL = HashModel(512, (2,), 1024)
PROMPT = [10, 20, 30]
TOKENS = 30
REQUEST = GenerateRequest(
    prompt=IdsPrompt(array("i", PROMPT).tobytes()),
    params=SamplingParams(max_new_tokens=TOKENS, temperature=0.0, seed=7),
    n=2,
)


class Taken:
    """What a client gets of one request, over all processes."""

    def __init__(self) -> None:
        self.progress = [Progress() for _ in range(REQUEST.n)]
        self.errors: list[RequestError] = []

    def follow(self, stream: OutputStream) -> None:
        stream.subscribe(self._take, self.errors.append)
        self.stream = stream

    def _take(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.progress[output.choice].add(output)

    def adopt(self, rig: MemoryEngine, request: GenerateRequest = REQUEST) -> None:
        """Go on in the engine's new client."""
        choices = [Progress(one.ids[:], one.text_length, one.is_finished) for one in self.progress]
        stream = self.stream
        self.follow(
            rig.engine.adopt(
                Adopted(
                    request=request,
                    rid=stream.rid,
                    encoded=stream.encoded,
                    start_s=0.0,
                    choices=choices,
                    epoch=rig.epochs[Role.API],
                )
            )
        )


async def begun(rig: MemoryEngine) -> Taken:
    task = asyncio.create_task(rig.engine.generate(REQUEST))
    while not task.done():
        await asyncio.sleep(0)
        rig.deliver(1)
    taken = Taken()
    taken.follow(task.result())
    return taken


@pytest.mark.parametrize("also", [None, Role.SCHEDULER, Role.DETOK, Role.WORKER])
@pytest.mark.parametrize("after", [0, 25, 60, 1000])
async def test_a_request_goes_on_in_the_successor(after: int, also: Role | None) -> None:
    rig = MemoryEngine()
    taken = await begun(rig)
    rig.deliver(after)
    rig.kill(Role.API)
    if also is not None:
        rig.kill(also)
    rig.deliver(after % 7)
    taken.adopt(rig)
    rig.run()
    for _ in range(3):
        rig.second()
    for choice, progress in enumerate(taken.progress):
        assert progress.is_finished
        assert list(progress.ids) == MODEL.continuation(PROMPT, TOKENS), choice
    assert not taken.errors
    assert rig.scheduler.is_idle() and rig.engine.live_count == 0


async def test_requests_survive_a_row_of_successors() -> None:
    rig = MemoryEngine()
    taken = await begun(rig)
    for frames in (9, 3, 12, 0, 5):
        rig.deliver(frames)
        rig.kill(Role.API)
        taken.adopt(rig)
    rig.run()
    assert all(one.is_finished and list(one.ids) == MODEL.continuation(PROMPT, TOKENS) for one in taken.progress)


async def test_an_adopted_request_can_be_aborted() -> None:
    rig = MemoryEngine()
    taken = await begun(rig)
    rig.deliver(20)
    rig.kill(Role.API)
    taken.adopt(rig)
    taken.stream.abort()
    rig.run()
    assert rig.scheduler.is_idle() and rig.engine.live_count == 0


async def test_the_deadline_is_that_of_the_request_not_of_its_adoption() -> None:
    rig = MemoryEngine()
    taken = await begun(rig)
    rig.kill(Role.API)
    taken.adopt(rig, structs.replace(REQUEST, deadline_s=2.0))
    rig.clock.advance(3.0)
    rig.send(rig._cores[Role.API].tick(rig.clock.now()))
    assert [error.status for error in taken.errors] == [408]
