"""The whole engine on in-memory links: exact output whatever dies and whatever the links lose, double or damage."""

import random
from array import array
from collections.abc import Callable

import pytest

from quartet.client.async_engine import OutputStream
from quartet.client.request import GenerateRequest, Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import IdsPrompt, SamplingParams
from quartet.wire.ids import Role
from tests.support.memory_engine import MemoryEngine
from worker_proc.simulated import HashModel

MODEL = HashModel(512, (2,), 1024)


class Reader:
    """One subscribed stream."""

    def __init__(self, prompt: list[int], tokens: int) -> None:
        self.prompt, self.tokens = prompt, tokens
        self.ids: list[int] = []
        self.text = ""
        self.ends = 0
        self.error: RequestError | None = None

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert not self.ends, "output after the end"
            self.ids += output.ids
            self.text += output.text
            self.ends += output.finish is not None

    def fail(self, error: RequestError) -> None:
        self.error = error

    def check(self) -> None:
        assert self.error is None and self.ends == 1
        assert self.ids == MODEL.continuation(self.prompt, self.tokens)


async def start(rig: MemoryEngine, prompts: list[list[int]], tokens: int) -> list[Reader]:
    import asyncio

    async def one(prompt: list[int]) -> OutputStream:
        params = SamplingParams(max_new_tokens=tokens, temperature=0.0)
        return await rig.engine.generate(GenerateRequest(prompt=IdsPrompt(array("i", prompt).tobytes()), params=params))

    tasks = [asyncio.create_task(one(prompt)) for prompt in prompts]
    readers = [Reader(prompt, tokens) for prompt in prompts]
    for _ in range(200):
        await asyncio.sleep(0)
        rig.deliver(3)
        if all(task.done() for task in tasks):
            break
        if not rig.is_busy:
            rig.second()
    for task, reader in zip(tasks, readers, strict=True):
        task.result().subscribe(reader.take, reader.fail)
    return readers


PROMPTS = [[10 + i, 20, 30, *range(40, 40 + 9 * i)] for i in range(5)]


async def test_undisturbed() -> None:
    rig = MemoryEngine()
    readers = await start(rig, PROMPTS, 30)
    rig.run()
    for reader in readers:
        reader.check()
    assert rig.scheduler.is_idle() and rig.engine.live_count == 0


@pytest.mark.parametrize("role", [Role.SCHEDULER, Role.WORKER, Role.DETOK])
@pytest.mark.parametrize("after", [0, 7, 40, 120])
async def test_a_death_at_any_point(role: Role, after: int) -> None:
    rig = MemoryEngine()
    readers = await start(rig, PROMPTS, 30)
    rig.deliver(after)
    rig.kill(role)
    rig.run()
    for reader in readers:
        reader.check()
    assert rig.scheduler.is_idle() and rig.engine.live_count == 0


async def test_deaths_one_after_another() -> None:
    rig = MemoryEngine()
    chance = random.Random(5)
    readers = await start(rig, PROMPTS, 60)
    for _ in range(25):
        rig.deliver(chance.randrange(12))
        rig.kill(chance.choice([Role.SCHEDULER, Role.DETOK]))
    rig.run()
    for reader in readers:
        reader.check()


def duplicate(destination: str, data: bytes) -> list[bytes]:
    return [data, data]


def damage(chance: random.Random) -> Callable[[str, bytes], list[bytes]]:
    def fault(destination: str, data: bytes) -> list[bytes]:
        if chance.random() < 0.02:
            at = chance.randrange(len(data))
            return [data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]]
        return [data]

    return fault


async def test_doubled_frames_change_nothing() -> None:
    rig = MemoryEngine()
    rig.wire.fault = duplicate
    readers = await start(rig, PROMPTS, 30)
    rig.run()
    for reader in readers:
        reader.check()


@pytest.mark.parametrize("destination", ["detok-0", "api-0", "worker-0", "scheduler-0"])
async def test_lost_frames_are_found_and_sent_again(destination: str) -> None:
    rig = MemoryEngine()
    chance = random.Random(9)
    readers = await start(rig, PROMPTS, 60)
    rig.wire.fault = lambda to, data: [] if to == destination and chance.random() < 0.05 else [data]
    for _ in range(60):
        rig.run()
        rig.second()
    rig.wire.fault = None
    for _ in range(20):
        rig.second()
    for reader in readers:
        reader.check()


async def test_an_abort_frees_everything() -> None:
    import asyncio

    rig = MemoryEngine()
    params = SamplingParams(max_new_tokens=500, temperature=0.0)
    task = asyncio.create_task(
        rig.engine.generate(GenerateRequest(prompt=IdsPrompt(array("i", [5, 6]).tobytes()), params=params, n=2))
    )
    for _ in range(10):
        await asyncio.sleep(0)
        rig.deliver(2)
    generation = task.result()
    rig.deliver(20)
    generation.abort()
    rig.run()
    assert rig.scheduler.is_idle() and rig.engine.live_count == 0


async def test_the_snapshot_says_how_many_requests_run_at_once() -> None:
    assert MemoryEngine(max_running_requests=5).scheduler_gauges()["max_running_reqs"] == 5
