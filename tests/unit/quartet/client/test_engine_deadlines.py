"""Deadlines that the client keeps: of the first token, until there is output, and of the whole."""

import asyncio

import pytest
from engine_rig import Rig, delta, settle, table

from quartet.client.async_engine import OutputStream
from quartet.client.request import GenerateRequest
from quartet.wire.errors import RequestError
from quartet.wire.frames import Abort, Accepted, CancelEncode, Encode, Encoded, IdsPrompt, Submit, pack_ids
from quartet.wire.ids import Role
from tests.support.wire_samples import PARAMS


@pytest.fixture
async def rig() -> Rig:
    return Rig()


def request(n: int = 1, **more: float) -> GenerateRequest:
    return GenerateRequest(prompt=IdsPrompt(pack_ids([5])), params=PARAMS, n=n, first_token_s=3.0, **more)


async def begun(rig: Rig, n: int = 1) -> "asyncio.Task[OutputStream]":
    task = asyncio.create_task(rig.engine.generate(request(n)))
    await settle()
    rig.answer(Encoded(rig.last(Encode).job, pack_ids([5]), "", PARAMS))
    await settle()
    return task


async def test_a_prompt_that_is_not_tokenized_in_time(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(request()))
    await settle()
    rig.pass_time(2.9)
    assert not task.done()
    rig.pass_time(0.2)
    with pytest.raises(RequestError) as caught:
        await task
    assert (caught.value.status, caught.value.code) == (408, "deadline_exceeded")
    assert rig.last(CancelEncode).job == rig.last(Encode).job and rig.core.is_idle()


async def test_a_request_that_is_not_accepted_in_time(rig: Rig) -> None:
    task = await begun(rig)
    rig.pass_time(3.1)
    with pytest.raises(RequestError, match="first token"):
        await task
    assert rig.last(Abort).rid == rig.last(Submit).rid and rig.core.is_idle()


async def test_a_request_that_waits_too_long_ends_with_an_error(rig: Rig) -> None:
    task = await begun(rig, n=2)
    for choice in range(2):
        rig.answer(Accepted(rig.last(Submit).rid, choice, 0, 9))
    stream = await task
    stream.subscribe(rig.outputs.extend, rig.errors.append)
    rig.pass_time(3.1)
    assert [error.status for error in rig.errors] == [408]
    assert rig.last(Abort).rid == stream.rid and rig.core.is_idle()


@pytest.mark.parametrize("is_end", [False, True])
async def test_a_request_with_output_has_no_deadline(rig: Rig, is_end: bool) -> None:
    task = await begun(rig, n=2)
    rid = rig.last(Submit).rid
    rig.answer(delta(rid, 0, [7], choice=1, is_end=is_end))
    rig.answer(Accepted(rid, 0, 0, 9))
    stream = await task
    stream.subscribe(rig.outputs.extend, rig.errors.append)
    rig.pass_time(10.0)
    assert not rig.errors and rig.engine.choices_left(stream) == 2 - is_end


async def test_the_deadline_of_the_whole_holds_without_a_scheduler(rig: Rig) -> None:
    """While a process is away nothing else ends a request at its deadline."""
    whole = GenerateRequest(prompt=IdsPrompt(pack_ids([5])), params=PARAMS, deadline_s=3.0)
    task = asyncio.create_task(rig.engine.generate(whole))
    await settle()
    rig.answer(Encoded(rig.last(Encode).job, pack_ids([5]), "", PARAMS))
    await settle()
    rid = rig.last(Submit).rid
    rig.answer(delta(rid, 0, [7]))
    stream = await task
    stream.subscribe(rig.outputs.extend, rig.errors.append)
    rig.announce(table(down=Role.SCHEDULER))
    rig.pass_time(3.2)
    assert not rig.errors, "the scheduler goes first"
    rig.pass_time(0.5)
    assert [(error.status, error.code) for error in rig.errors] == [(408, "deadline_exceeded")]
    assert rig.last(Abort).rid == rid and rig.core.is_idle()
