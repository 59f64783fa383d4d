"""A request that ends a process each time it works on it: found, refused, and all others exact; in memory."""

from array import array
from typing import Any

import pytest

from quartet.client.request import GenerateRequest
from quartet.wire.errors import RequestError
from quartet.wire.frames import Encode, IdsPrompt, LastEnd, Open, SamplingParams, Submit
from quartet.wire.ids import Role
from tests.support.memory_engine import MemoryEngine
from tests.unit.quartet.client.test_memory_engine import MODEL, Reader

POISON = [66, 6, 6]
OTHERS = [[10 + i, 20, 30] for i in range(9)]
TOKENS = 30
DEADLY = {Role.TOKENIZER: Encode, Role.SCHEDULER: Submit, Role.DETOK: Open}
"""What a process dies of, if it is about the poison."""


def is_poison(frame: Any) -> bool:
    if isinstance(frame, Encode):
        return isinstance(frame.prompt, IdsPrompt) and frame.prompt.ids == array("i", POISON).tobytes()
    if isinstance(frame, Submit):
        return frame.prompt_ids == array("i", POISON).tobytes()
    return isinstance(frame, Open) and frame.prompt_tail == array("i", POISON).tobytes()


class PoisonEngine(MemoryEngine):
    """An engine whose process of one role dies of the poison."""

    def __init__(self, role: Role) -> None:
        self.role, self.deaths = role, 0
        super().__init__()
        self.last_end = LastEnd.CRASHED

    def _start(self, role: Role) -> None:
        super()._start(role)
        if role is self.role:
            core = self._cores[role]
            handle = core.handle

            def deadly(source: Any, frame: Any, now: float) -> Any:
                if isinstance(frame, DEADLY[role]) and is_poison(frame):
                    self.deaths += 1
                    assert self.deaths < 20, "the process dies for ever"
                    self.kill(role)
                    return []
                return handle(source, frame, now)

            core.handle = deadly  # type: ignore[method-assign]


async def ask(engine: MemoryEngine, prompt: list[int]) -> Any:
    params = SamplingParams(max_new_tokens=TOKENS, temperature=0.0)
    return await engine.engine.generate(GenerateRequest(prompt=IdsPrompt(array("i", prompt).tobytes()), params=params))


async def answers(engine: MemoryEngine, prompts: list[list[int]]) -> list[Any]:
    """Return a Reader for each request, or its error."""
    import asyncio

    tasks = [asyncio.create_task(ask(engine, prompt)) for prompt in prompts]
    found: list[Any] = [None] * len(prompts)
    for _ in range(60):
        await asyncio.sleep(0)
        engine.run()
        for at, task in enumerate(tasks):
            if task.done() and found[at] is None:
                found[at] = task.exception() or Reader(prompts[at], TOKENS)
                if isinstance(found[at], Reader):
                    task.result().subscribe(found[at].take, found[at].fail)
        engine.second()
    return found


@pytest.mark.parametrize("role", DEADLY)
async def test_the_poison_is_refused_and_the_others_are_exact(role: Role) -> None:
    engine = PoisonEngine(role)
    *others, poison = await answers(engine, [*OTHERS, POISON])
    for prompt, reader in zip(OTHERS, others, strict=True):
        reader.check()
        assert reader.ids == MODEL.continuation(prompt, TOKENS)
    error = poison if isinstance(poison, RequestError) else poison.error
    assert error is not None and (error.status, error.code) == (500, "request_quarantined")
    assert engine.deaths <= 3
    assert engine.scheduler.is_idle() and engine.engine.live_count == 0
    (again,) = await answers(engine, [POISON])
    assert isinstance(again, RequestError) and (again.status, again.code) == (422, "request_quarantined")
    assert engine.deaths <= 3
