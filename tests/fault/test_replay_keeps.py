"""What a replay keeps beside the tokens: order of arrival, priority, deadline, end of sequence, time to first token."""

import random

import pytest
from msgspec.structs import replace

from quartet.client.request import GenerateRequest
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids
from quartet.wire.ids import Role
from tests.support.faulty_engine import FaultyEngine
from tests.support.history import History
from tests.support.request_kinds import SIMULATED, prepared

PROMPTS = [[10 + i, 20, 30] for i in range(6)]


def kill(engine: FaultyEngine, role: Role) -> None:
    engine.die(role, keeps_inbox=False)
    engine.steps(10)
    engine.revive(role)


def ends(engine: FaultyEngine, histories: list[History]) -> list[int]:
    """Run to the end; returns the numbers of the requests in the order in which they ended."""
    order: list[int] = []
    while len(order) < len(histories):
        engine.steps(1)
        order += [i for i, history in enumerate(histories) if history.is_over and i not in order]
    for history in histories:
        history.check()
    return order


@pytest.mark.parametrize("role", [Role.SCHEDULER, Role.WORKER, Role.DETOK])
def test_requests_of_one_slot_end_in_the_order_of_their_arrival(role: Role) -> None:
    made, expected = prepared("greedy", SIMULATED, PROMPTS)
    engine = FaultyEngine(random.Random(0), max_running_requests=1)
    histories = [engine.begin(*pair) for pair in zip(made, expected, strict=True)]
    engine.steps(60)
    kill(engine, role)
    engine.steps(150)
    kill(engine, role)
    assert ends(engine, histories) == [*range(len(PROMPTS))]


@pytest.mark.parametrize("role", [Role.SCHEDULER, Role.WORKER, Role.DETOK])
def test_priorities_hold_after_a_death(role: Role) -> None:
    made, expected = prepared("greedy", SIMULATED, PROMPTS)
    made = [replace(request, priority=i) for i, request in enumerate(made)]
    engine = FaultyEngine(random.Random(0), max_running_requests=1, enable_priority_scheduling=True)
    histories = [engine.begin(*pair) for pair in zip(made, expected, strict=True)]
    engine.steps(14)
    kill(engine, role)
    # The first one runs before the others have been tokenized.
    assert [i for i in ends(engine, histories) if i] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("role", [Role.SCHEDULER, Role.WORKER, Role.DETOK])
def test_a_deadline_goes_on_running_through_deaths(role: Role) -> None:
    engine = FaultyEngine(random.Random(0))
    params = SamplingParams(max_new_tokens=900, temperature=0.0)
    request = GenerateRequest(prompt=IdsPrompt(pack_ids([5, 6])), params=params, deadline_s=2.0)
    start_s = engine.clock.now()
    history = engine.begin(request)
    for _ in range(3):
        engine.steps(30)
        engine.die(role, keeps_inbox=False)
        engine.clock.advance(0.4)
        engine.revive(role)
    # The worker is gone for good: nothing but the deadline can end the request.
    engine.steps(5)
    engine.die(Role.WORKER, keeps_inbox=False)
    engine.step_until(lambda: history.is_over)
    assert history.error is not None and (history.error.status, history.error.code) == (408, "deadline_exceeded")
    assert 2.0 <= engine.clock.now() - start_s < 3.0


@pytest.mark.parametrize("role", [Role.SCHEDULER, Role.WORKER, Role.DETOK])
def test_a_stop_token_that_was_delivered_ends_the_replay(role: Role) -> None:
    """The last id has reached the client, its end has not: the replay must not sample another one (R14)."""
    made, expected = prepared("stop token", SIMULATED, PROMPTS[:1])
    for after in range(40, 140, 3):
        engine = FaultyEngine(random.Random(0))
        history = engine.begin(made[0], expected[0])
        engine.steps(after)
        kill(engine, role)
        engine.finish([history])
        history.check()
        engine.check_nothing_left()
