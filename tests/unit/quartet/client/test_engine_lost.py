"""Requests that the scheduler's answers to LiveRequests do not name: submitted again, and failed at last."""

import pytest
from engine_rig import Rig

from quartet.wire.frames import HeldRequest, HeldRequests, LiveRequests, Submit


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_what_the_scheduler_lost_is_submitted_again(rig: Rig) -> None:
    await rig.started()
    rig.pass_time(1.0)
    assert [(key.choice, key.attempt) for key in rig.last(LiveRequests).live] == [(0, 0)]
    for _ in range(2):
        rig.clock.advance(1.0)
        rig.answer(HeldRequests([]))
    assert rig.last(Submit).attempt == 1


async def test_a_burst_of_old_answers_counts_as_one(rig: Rig) -> None:
    """A scheduler that was stopped for seconds answers every question of that time at once."""
    stream = await rig.started()
    for _ in range(4):
        rig.clock.advance(1.0)
        for _ in range(10):
            rig.answer(HeldRequests([]))
        rig.clock.advance(1.0)
        rig.answer(HeldRequests([HeldRequest(stream.rid, 0, 0, False, 0)]))
    assert rig.last(Submit).attempt == 0 and not rig.errors


async def test_a_request_that_is_lost_again_and_again_fails(rig: Rig) -> None:
    await rig.started()
    for _ in range(10):
        rig.clock.advance(1.0)
        rig.answer(HeldRequests([]))
    assert [error.status for error in rig.errors] == [500] and rig.engine.live_count == 0


async def test_choices_lost_together_are_one_error(rig: Rig) -> None:
    await rig.started(n=2)
    for _ in range(10):
        rig.clock.advance(1.0)
        rig.answer(HeldRequests([]))
    assert len(rig.errors) == 1
