"""The engine's client against hand-written answers: refusals, replays, and an end for every request."""

import asyncio

import pytest
from engine_rig import Rig, delta, settle, table

from quartet.client.request import GenerateRequest
from quartet.wire.errors import RequestError
from quartet.wire.frames import (
    Abort,
    Accepted,
    Encode,
    EncodeFailed,
    Failed,
    IdsPrompt,
    Rejected,
    Submit,
    pack_ids,
)
from quartet.wire.ids import Role
from tests.support.wire_samples import PARAMS


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_a_request_goes_by_the_tokenizer_to_the_scheduler(rig: Rig) -> None:
    stream = await rig.started(n=2)
    assert [(destination, type(frame)) for destination, frame in rig.sent] == [
        ("tokenizer-0", Encode), ("scheduler-0", Submit), ("scheduler-0", Submit),
    ]  # fmt: skip
    assert [frame.choice for _, frame in rig.sent[1:]] == [0, 1]
    assert (stream.prompt_ids, stream.prompt_text, stream.max_new_tokens) == ([5, 6], "ab", 9)
    assert rig.engine.live_count == 2


async def test_output_comes_as_it_arrives_and_ends_once(rig: Rig) -> None:
    stream = await rig.started()
    rig.answer(delta(stream.rid, 0, [7, 8]))
    rig.answer(delta(stream.rid, 2, [9], is_end=True))
    rig.answer(delta(stream.rid, 2, [9], is_end=True))
    assert [output.ids for output in rig.outputs] == [[7, 8], [9]]
    assert sum(output.finish is not None for output in rig.outputs) == 1
    assert rig.engine.live_count == 0


async def test_iteration_takes_all_choices_to_their_ends(rig: Rig) -> None:
    task = await rig.begin(n=2)
    rid = rig.last(Submit).rid
    for choice in (0, 1):
        rig.answer(Accepted(rid, choice, 0, 9))
    stream = await task
    rig.answer(delta(rid, 0, [7], choice=1, is_end=True))

    async def read() -> list[tuple[int, list[int]]]:
        return [(output.choice, output.ids) async for output in stream]

    reading = asyncio.create_task(read())
    await settle()
    rig.answer(delta(rid, 0, [8], choice=0, is_end=True))
    assert await reading == [(1, [7]), (0, [8])]
    assert not any(isinstance(frame, Abort) for _, frame in rig.sent)


async def test_leaving_an_iteration_early_aborts(rig: Rig) -> None:
    task = await rig.begin()
    rig.answer(Accepted(rig.last(Submit).rid, 0, 0, 9))
    stream = await task
    rig.answer(delta(stream.rid, 0, [7]))
    iterator = stream.__aiter__()
    await anext(iterator)
    await iterator.aclose()
    assert rig.last(Abort).rid == stream.rid and rig.engine.live_count == 0


async def test_an_end_without_accepted_is_an_acceptance(rig: Rig) -> None:
    task = await rig.begin()
    rig.answer(delta(rig.last(Submit).rid, 0, [7], is_end=True))
    rig.answer(Accepted(rig.last(Submit).rid, 0, 0, 9))
    await settle()
    is_done = task.done()
    task.cancel()
    assert is_done


async def test_the_limit_is_taken_from_a_late_accepted(rig: Rig) -> None:
    task = await rig.begin()
    rid = rig.last(Submit).rid
    rig.answer(delta(rid, 0, [7]))
    rig.answer(Accepted(rid, 0, 0, 3))
    assert (await task).max_new_tokens == 3


async def test_what_the_tokenizer_refuses_is_raised_with_its_fields(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS)))
    await settle()
    rig.answer(EncodeFailed(rig.last(Encode).job, 400, "context_length_exceeded", "too long", "messages"))
    with pytest.raises(RequestError) as caught:
        await task
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert rig.engine.live_count == 0


async def test_what_the_scheduler_refuses_is_raised_and_nothing_is_kept(rig: Rig) -> None:
    task = await rig.begin(n=2)
    rid = rig.last(Submit).rid
    rig.answer(Accepted(rid, 0, 0, 9))
    rig.answer(Rejected(rid, 1, 0, 503, "queue_full", "full", 2.0))
    with pytest.raises(RequestError) as caught:
        await task
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2.0)
    assert rig.engine.live_count == 0 and rig.last(Abort).rid == rid


async def test_cancelling_a_request_that_waits_frees_it(rig: Rig) -> None:
    task = await rig.begin()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.engine.live_count == 0 and rig.last(Abort).rid == rig.last(Submit).rid


async def test_cancelling_a_request_at_any_moment_ends_it(rig: Rig) -> None:
    for turns in range(6):
        task = asyncio.create_task(rig.engine.generate(GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await settle()
        is_done = task.done()
        task.cancel()
        assert is_done, f"cancelled after {turns} turns of the loop, it goes on"


async def test_a_failure_midway_ends_the_request_with_an_error(rig: Rig) -> None:
    stream = await rig.started(n=2)
    rig.answer(Failed(stream.rid, 1, 0, 500, "out_of_memory", "no room"))
    rig.answer(Failed(stream.rid, 0, 0, 500, "out_of_memory", "no room"))
    rig.answer(delta(stream.rid, 0, [7]))
    assert [error.code for error in rig.errors] == ["out_of_memory"]
    assert rig.outputs == [] and rig.engine.live_count == 0


async def test_a_failure_of_an_earlier_attempt_is_ignored(rig: Rig) -> None:
    stream = await rig.started()
    rig.announce(table(scheduler=2))
    rig.answer(Failed(stream.rid, 0, 0, 500, "out_of_memory", "no room"))
    assert not rig.errors and rig.engine.live_count == 1


async def test_a_new_scheduler_is_given_everything_again(rig: Rig) -> None:
    stream = await rig.started()
    rig.answer(delta(stream.rid, 0, [7, 8]))
    rig.announce(table(scheduler=2))
    again = rig.last(Submit)
    assert (again.rid, again.attempt, again.output_ids) == (stream.rid, 1, pack_ids([7, 8]))
    count = len(rig.sent)
    rig.announce(table(scheduler=2))
    assert len(rig.sent) == count, "once for each death"


async def test_a_new_tokenizer_is_given_its_jobs_again(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS)))
    await settle()
    rig.announce(table(tokenizer=2))
    first, second = rig.sent
    assert first == second and isinstance(first[1], Encode)
    task.cancel()


async def test_the_death_of_a_worker_sends_nothing_to_the_scheduler(rig: Rig) -> None:
    await rig.started()
    count = len(rig.sent)
    rig.announce(table(worker=2))
    assert len(rig.sent) == count


async def test_a_hole_in_the_output_causes_a_replay(rig: Rig) -> None:
    stream = await rig.started()
    rig.answer(delta(stream.rid, 0, [7]))
    rig.answer(delta(stream.rid, 2, [9]))
    assert (rig.last(Submit).attempt, rig.last(Submit).output_ids) == (1, pack_ids([7]))
    rig.answer(delta(stream.rid, 1, [8, 9], attempt=1))
    assert [token for output in rig.outputs for token in output.ids] == [7, 8, 9]


async def test_a_drain_refuses_what_is_new(rig: Rig) -> None:
    rig.announce(table(is_draining=True))
    with pytest.raises(RequestError) as caught:
        await rig.engine.generate(GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS))
    assert (caught.value.status, caught.value.code) == (503, "draining")


async def test_a_drain_waits_for_what_is_live(rig: Rig) -> None:
    stream = await rig.started()
    draining = asyncio.create_task(rig.engine.drain(10.0))
    await settle()
    assert not draining.done()
    rig.answer(delta(stream.rid, 0, [7], is_end=True))
    await draining
    assert not rig.errors


async def test_a_drain_fails_what_is_left(rig: Rig) -> None:
    await rig.started()
    await rig.engine.drain(0.0)
    assert [(error.status, error.code) for error in rig.errors] == [(503, "draining")]
    assert rig.engine.live_count == 0


async def test_a_drain_fails_a_request_once(rig: Rig) -> None:
    await rig.started(n=2)
    await rig.engine.drain(0.0)
    assert len(rig.errors) == 1


async def test_a_query_without_a_reply_is_503(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quartet.client.async_engine.QUERY_TIMEOUT_S", 0.01)
    with pytest.raises(RequestError) as caught:
        await rig.engine.query("timeline")
    assert caught.value.status == 503


async def test_a_role_that_is_down_is_not_accepting_but_alive(rig: Rig) -> None:
    assert rig.engine.is_accepting and rig.engine.is_alive
    rig.announce(table(down=Role.WORKER))
    assert not rig.engine.is_accepting and rig.engine.is_alive and not rig.engine.is_draining


async def test_before_the_first_readiness_a_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quartet.client.async_engine.START_GRACE_S", 0.01)
    rig = Rig(table(down=Role.WORKER))
    with pytest.raises(RequestError) as caught:
        await rig.engine.generate(GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS))
    assert (caught.value.status, caught.value.code) == (503, "engine_starting")
