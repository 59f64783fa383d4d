"""The engine's client while a prompt is being tokenized: retries, cancellation, and requests that cannot be sent."""

import asyncio

import pytest
from engine_rig import SOURCE, Rig, settle, table

from quartet.client import request as request_module
from quartet.client.async_engine import AsyncEngine
from quartet.client.core import ClientCore
from quartet.client.encode_jobs import RETRY_S
from quartet.client.request import GenerateRequest
from quartet.runtime.core import Sent
from quartet.wire.errors import FrameError, RequestError
from quartet.wire.frames import (
    Abort,
    CancelEncode,
    Encode,
    Encoded,
    EncodeFailed,
    IdsPrompt,
    Submit,
    pack_ids,
)
from tests.support.wire_samples import PARAMS


@pytest.fixture
async def rig() -> Rig:
    return Rig()


def plain() -> GenerateRequest:
    return GenerateRequest(prompt=IdsPrompt(pack_ids([5])), params=PARAMS)


def encoded(job: int) -> Encoded:
    return Encoded(job, pack_ids([5]), "", PARAMS)


async def test_a_job_is_sent_again_until_it_is_answered(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS)))
    await settle()
    rig.pass_time(1.5 * RETRY_S)
    first, again = rig.all(Encode)
    assert first == again
    rig.answer(Encoded(first.job, pack_ids([5]), "", PARAMS))
    rig.answer(Encoded(first.job, pack_ids([6]), "", PARAMS))
    rig.pass_time(3 * RETRY_S)
    assert (len(rig.all(Encode)), len(rig.all(Submit))) == (2, 1)
    assert rig.last(Submit).prompt_ids == pack_ids([5])
    task.cancel()


@pytest.mark.parametrize(("deadline_s", "status"), [(None, 503), (2 * RETRY_S, 408)])
async def test_a_job_without_an_answer_fails(rig: Rig, deadline_s: float | None, status: int) -> None:
    request = GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS, deadline_s=deadline_s)
    task = asyncio.create_task(rig.engine.generate(request))
    await settle()
    rig.pass_time(10 * RETRY_S)
    with pytest.raises(RequestError) as caught:
        await task
    assert caught.value.status == status
    assert len(rig.all(Encode)) == 4 if deadline_s is None else len(rig.all(Encode)) < 4
    assert rig.last(CancelEncode).job == rig.last(Encode).job
    assert rig.core.is_idle()


async def test_an_answer_is_submitted_in_the_same_turn_of_the_loop(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(plain()))
    await settle()
    rig.answer(encoded(rig.last(Encode).job))
    assert rig.last(Submit).prompt_ids == pack_ids([5])
    task.cancel()


async def test_nothing_is_submitted_for_a_cancelled_request(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(plain()))
    await settle()
    task.cancel()
    rig.answer(encoded(rig.last(Encode).job))
    await settle()
    assert task.cancelled() and [type(frame) for _, frame in rig.sent] == [Encode]


async def test_a_job_is_cancelled_with_its_request(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(plain()))
    await settle()
    task.cancel()
    await settle()
    (to, job), (also_to, cancelled) = rig.sent
    assert (cancelled, also_to) == (CancelEncode(job.job, "api-0"), to) and rig.core.is_idle()


async def test_a_request_that_is_cancelled_as_it_is_submitted_is_aborted(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(plain()))
    await settle()
    rig.answer(encoded(rig.last(Encode).job))
    task.cancel()
    await settle()
    assert task.cancelled() and rig.last(Abort).rid == rig.last(Submit).rid and rig.engine.live_count == 0


async def test_a_second_request_of_one_id_is_refused_and_the_first_goes_on(rig: Rig) -> None:
    stream = await rig.started()
    request = GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS, rid=stream.rid)
    task = asyncio.create_task(rig.engine.generate(request))
    await settle()
    rig.answer(encoded(rig.last(Encode).job))
    with pytest.raises(RequestError) as caught:
        await task
    assert caught.value.param == "request_id"
    assert rig.engine.live_count == 1 and not any(isinstance(frame, Abort) for _, frame in rig.sent)


async def test_a_prompt_that_fits_into_no_frame_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_module, "MAX_PROMPT_BYTES", 3)
    task = asyncio.create_task(rig.engine.generate(plain()))
    await settle()
    rig.answer(encoded(rig.last(Encode).job))
    with pytest.raises(RequestError) as caught:
        await task
    assert caught.value.status == 400 and rig.engine.live_count == 0


async def test_a_job_that_fits_into_no_frame_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(sent: list[Sent]) -> None:
        if any(isinstance(frame, Encode) for _, frame in sent):
            raise FrameError("too_big")

    monkeypatch.setattr(rig, "send", send)
    with pytest.raises(RequestError) as caught:
        await rig.engine.generate(plain())
    assert caught.value.status == 400 and rig.core.is_idle()


async def test_a_tokenizer_that_comes_back_gets_its_jobs_again(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.generate(plain()))
    await settle()
    rig.announce(table(tokenizer=2))
    first, again = (frame for _, frame in rig.sent)
    assert first == again
    rig.answer(encoded(first.job))
    rig.announce(table(tokenizer=3))
    assert sum(isinstance(frame, Encode) for _, frame in rig.sent) == 2
    task.cancel()


async def test_an_answer_to_a_predecessor_of_the_api_process_is_not_taken(rig: Rig) -> None:
    """A tokenizer answers a dead api process's jobs to its successor, whose own jobs have other numbers."""
    jobs = []
    for epoch in (1, 2):
        core = ClientCore("api-0", epoch=epoch)
        rig.engine = AsyncEngine(core, rig, rig.clock)
        core.handle(SOURCE, table(), rig.clock.now())
        task = asyncio.create_task(rig.engine.generate(plain()))
        await settle()
        jobs.append(rig.last(Encode).job)
        assert bool(core.handle(SOURCE, encoded(jobs[0]), rig.clock.now())) == (epoch == 1)
        task.cancel()
    assert jobs[0] != jobs[1]
    assert (
        core.queries.start("trace", "", None, print)[0]
        != ClientCore("api-0", epoch=1).queries.start("trace", "", None, print)[0]
    )


async def test_a_prompt_is_tokenized_and_nothing_is_generated(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.encode(plain()))
    await settle()
    rig.answer(encoded(rig.last(Encode).job))
    assert (await task).ids == pack_ids([5])
    assert [type(frame) for _, frame in rig.sent] == [Encode] and rig.core.is_idle()


async def test_tokenizing_alone_fails_with_the_tokenizers_error(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.encode(plain()))
    await settle()
    rig.answer(EncodeFailed(rig.last(Encode).job, 400, "invalid_value", "wrong", "prompt"))
    with pytest.raises(RequestError) as caught:
        await task
    assert caught.value.param == "prompt" and rig.core.is_idle()


async def test_tokenizing_alone_is_cancelled_with_its_caller(rig: Rig) -> None:
    task = asyncio.create_task(rig.engine.encode(plain()))
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled() and rig.last(CancelEncode).job == rig.last(Encode).job and rig.core.is_idle()


async def test_a_text_to_tokenize_that_fits_into_no_frame_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(sent: list[Sent]) -> None:
        if any(isinstance(frame, Encode) for _, frame in sent):
            raise FrameError("too_big")

    monkeypatch.setattr(rig, "send", send)
    with pytest.raises(RequestError) as caught:
        await rig.engine.encode(plain())
    assert caught.value.status == 400 and rig.core.is_idle()


async def test_a_tokenizer_that_does_not_answer_ends_tokenizing_at_its_deadline(rig: Rig) -> None:
    request = GenerateRequest(prompt=IdsPrompt(b""), params=PARAMS, deadline_s=1.0)
    task = asyncio.create_task(rig.engine.encode(request))
    await settle()
    rig.pass_time(2.0)
    with pytest.raises(RequestError) as caught:
        await task
    assert caught.value.status == 408 and rig.core.is_idle()
