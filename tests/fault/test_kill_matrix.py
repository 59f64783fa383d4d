"""The kill matrix in memory: each role dies in each phase of a request, with and without what waited for it."""

import random
from collections.abc import Callable

import pytest

from quartet.client.request import GenerateRequest
from quartet.wire.frames import Encode, StepResult
from quartet.wire.ids import Role
from tests.support.faulty_engine import INNER, FaultyEngine
from tests.support.history import Choice, History
from tests.support.request_kinds import SIMULATED, make_engine, prepared

PROMPTS = [[30, *range(50, 50 + 150)], *([10 + i, 20, 30, *range(40, 40 + 9 * i)] for i in range(4))]
"""The first is the one whose phase counts; it is prefilled in three chunks."""
KINDS = ("logprobs", "prompt logprobs")

Holds = Callable[[FaultyEngine, History, Choice], bool]


def is_queued(engine: FaultyEngine, history: History, expected: Choice) -> bool:
    gauges, _ = engine.scheduler.snapshot()
    return history.prompt_tokens > 0 and gauges["num_queue_reqs"] > 0 and not history.choices[0].ids


def is_tokenising(engine: FaultyEngine, history: History, expected: Choice) -> bool:
    return engine.pump.waits("tokenizer-0", Encode)


def is_between_chunks(engine: FaultyEngine, history: History, expected: Choice) -> bool:
    return engine.scheduler._batch.chunked is not None


def is_first_token_due(engine: FaultyEngine, history: History, expected: Choice) -> bool:
    gauges, _ = engine.scheduler.snapshot()
    running = (
        gauges["num_running_reqs"] and not gauges["num_queue_reqs"] and not is_between_chunks(engine, history, expected)
    )
    return bool(running) and not history.choices[0].ids and engine.pump.waits("scheduler-0", StepResult)


def is_midway(engine: FaultyEngine, history: History, expected: Choice) -> bool:
    return len(history.choices[0].ids) >= len(expected.ids) // 2


def is_last_token_due(engine: FaultyEngine, history: History, expected: Choice) -> bool:
    return len(history.choices[0].ids) >= len(expected.ids) - 1


def is_over(engine: FaultyEngine, history: History, expected: Choice) -> bool:
    return history.is_over


PHASES: dict[str, Holds] = {
    "queued": is_queued,
    "tokenising": is_tokenising,
    "prefill chunk": is_between_chunks,
    "first token": is_first_token_due,
    "mid": is_midway,
    "last token": is_last_token_due,
    "after finish": is_over,
}


Calm = tuple[list[GenerateRequest], list[list[Choice]]]


@pytest.fixture(scope="module", params=KINDS)
def calm(request: pytest.FixtureRequest) -> Calm:
    made, expected = prepared(request.param, SIMULATED, PROMPTS)
    return made, [choices for choices in expected if choices is not None]


@pytest.mark.parametrize("keeps_inbox", [True, False], ids=["inbox kept", "inbox lost"])
@pytest.mark.parametrize("role", INNER, ids=lambda role: role.label)
@pytest.mark.parametrize("phase", PHASES)
def test_a_cell(calm: Calm, phase: str, role: Role, keeps_inbox: bool) -> None:
    made, expected = calm
    slots = {"max_running_requests": 2} if phase == "queued" else {}
    engine = make_engine(KINDS[0], random.Random(0), **slots)
    others = [engine.begin(request, choices) for request, choices in zip(made[1:], expected[1:], strict=True)]
    engine.steps(25)
    history = engine.begin(made[0], expected[0])
    engine.step_until(lambda: PHASES[phase](engine, history, expected[0][0]))
    engine.die(role, keeps_inbox)
    engine.steps(10)
    engine.revive(role)
    later = engine.begin(made[1], expected[1])
    histories = [history, *others, later]
    engine.finish(histories)
    for one in histories:
        one.check()
    engine.check_nothing_left()


def test_all_at_once_and_again_while_they_return(calm: Calm) -> None:
    made, expected = calm
    engine = make_engine(KINDS[0], random.Random(1))
    histories = [engine.begin(*pair) for pair in zip(made, expected, strict=True)]
    engine.steps(100)
    for role in INNER:
        engine.die(role, keeps_inbox=False)
    engine.revive(Role.WORKER)
    engine.steps(5)
    engine.die(Role.WORKER, keeps_inbox=False)
    engine.revive(Role.SCHEDULER)
    engine.steps(5)
    engine.die(Role.SCHEDULER, keeps_inbox=True)
    engine.finish(histories)
    for history in histories:
        history.check()
    engine.check_nothing_left()
