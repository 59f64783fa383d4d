"""The tokenizer's shell: jobs leave the loop free, answers go back to the sender."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tokenizer_rig import resolved

from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.errors import ModelError
from quartet.wire.frames import (
    CancelEncode,
    Encode,
    Encoded,
    EncodeFailed,
    IdsPrompt,
    SamplingParams,
    TextPrompt,
    pack_ids,
)
from quartet.wire.ids import Epoch, Role
from tests.support.fake_context import FakeContext, running
from tokenizer_proc import job_queue, process
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.tokenizer import TextEncoder

API = Source(Role.API, 0, Epoch(1))


@pytest.fixture
def context(byte_level_folder: Path) -> FakeContext:
    return FakeContext(Role.TOKENIZER, Config(resolved=resolved(byte_level_folder)))


@pytest.fixture
async def tokenizer(context: FakeContext) -> AsyncIterator[FakeContext]:
    async with running(process.main, context):
        yield context


async def answered(context: FakeContext, count: int) -> None:
    """Wait until that many answers have been sent."""
    async with asyncio.timeout(5):
        while len(context.sent) < count:
            await asyncio.sleep(0.001)


def text_job(job: int, text: str = "hello") -> Encode:
    return Encode(job, f"api-{job % 2}", TextPrompt(text), SamplingParams())


async def test_each_job_is_answered_to_its_api_process(tokenizer: FakeContext) -> None:
    for job in range(6):
        tokenizer.deliver(API, text_job(job, "" if job == 3 else "hello"))
    await answered(tokenizer, 6)
    assert [(to, answer.job) for to, answer in tokenizer.sent] == [(f"api-{job % 2}", job) for job in range(6)]
    assert [type(answer) for _, answer in tokenizer.sent].count(EncodeFailed) == 1
    assert (tokenizer.steps_of_progress, tokenizer.phases[-1]) == (6, ("idle", 0.0))
    assert tokenizer.phases[0][0] == "encode" and tokenizer.phases[0][1] >= 10.0
    gauges, counters = tokenizer.metrics()
    assert (gauges["tokenizer_pending_jobs"], counters["tokenizer_jobs"]) == (0, 5)


def test_a_job_that_ends_after_its_loop_is_dropped(context: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go, errors = threading.Event(), list[threading.ExceptHookArgs]()
    monkeypatch.setattr(TokenizerCore, "answer", lambda self, job: go.wait(5) and Encoded(job.job, b"", "", job.params))
    monkeypatch.setattr(threading, "excepthook", errors.append)

    async def start_a_job() -> None:
        async with running(process.main, context):
            context.deliver(API, text_job(1))

    asyncio.run(start_a_job())
    (thread,) = (one for one in threading.enumerate() if one.name == "encode")
    go.set()
    thread.join(5)
    assert not thread.is_alive() and not errors


async def test_the_loop_runs_on_while_a_job_takes_long(tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    go = threading.Event()
    monkeypatch.setattr(TokenizerCore, "answer", lambda self, job: go.wait(5) and Encoded(job.job, b"", "", job.params))
    tokenizer.deliver(API, text_job(1))
    await asyncio.sleep(0.02)
    assert tokenizer.sent == []
    assert tokenizer.metrics().gauges["tokenizer_pending_jobs"] == 1
    go.set()
    await answered(tokenizer, 1)
    assert len(tokenizer.sent) == 1


def ids_job(job: int, count: int = 3, **more: bool) -> Encode:
    return Encode(job, "api-0", IdsPrompt(pack_ids([5] * count), **more), SamplingParams())


async def test_a_cancelled_job_is_not_answered_and_a_duplicate_once(
    tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    go = threading.Event()
    monkeypatch.setattr(TokenizerCore, "answer", lambda self, job: go.wait(5) and Encoded(job.job, b"", "", job.params))
    for job in (2, 4, 4, 6, 2):
        tokenizer.deliver(API, text_job(job))
    tokenizer.deliver(API, CancelEncode(4, "api-0"))
    assert tokenizer.metrics().gauges["tokenizer_pending_jobs"] == 2
    go.set()
    await answered(tokenizer, 2)
    await asyncio.sleep(0.02)
    assert [answer.job for _, answer in tokenizer.sent] == [2, 6]


async def test_ids_are_answered_at_once(tokenizer: FakeContext) -> None:
    tokenizer.deliver(API, ids_job(1))
    tokenizer.deliver(API, ids_job(2, count=0))
    assert [(answer.job, type(answer)) for _, answer in tokenizer.sent] == [(1, Encoded), (2, EncodeFailed)]
    gauges, counters = tokenizer.metrics()
    assert (gauges["tokenizer_pending_jobs"], counters["tokenizer_jobs"]) == (0, 1)


async def test_ids_overtake_no_job(tokenizer: FakeContext) -> None:
    tokenizer.deliver(API, text_job(1))
    tokenizer.deliver(API, ids_job(2))
    assert tokenizer.sent == []
    await answered(tokenizer, 2)
    assert [answer.job for _, answer in tokenizer.sent] == [1, 2]


@pytest.mark.parametrize("job", [ids_job(1, count=16385), ids_job(1, is_echoed=True)])
async def test_what_takes_longer_leaves_the_loop_free(tokenizer: FakeContext, job: Encode) -> None:
    tokenizer.deliver(API, job)
    assert tokenizer.sent == []
    await answered(tokenizer, 1)
    assert len(tokenizer.sent) == 1


async def test_a_bug_in_the_loop_is_answered_with_500(tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenizerCore, "answer", lambda *_: 1 // 0)
    tokenizer.deliver(API, ids_job(1))
    assert tokenizer.sent[0][1].status == 500


async def test_a_long_prompt_does_not_stop_the_loop(smollm2_encoder: TextEncoder) -> None:
    gaps: list[float] = []
    done = asyncio.create_task(asyncio.to_thread(smollm2_encoder.encode_rendered, "a b漢 " * 60_000))
    while not done.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        gaps.append(time.monotonic() - before)
    assert len(await done) > 100_000
    assert max(gaps) < 0.25 * sum(gaps), "encoding must let go of the interpreter"


async def test_a_bug_is_answered_with_500(tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TokenizerCore, job: Encode) -> None:
        raise RuntimeError("secret prompt text")

    monkeypatch.setattr(TokenizerCore, "answer", broken)
    tokenizer.deliver(API, text_job(1))
    await answered(tokenizer, 1)
    (_, answer), *_ = tokenizer.sent
    assert answer.status == 500 and "secret" not in answer.message


async def test_too_many_jobs_are_refused(tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queue, "MAX_JOBS", 0)
    tokenizer.deliver(API, text_job(1))
    assert tokenizer.sent[0][1].status == 503


async def test_a_missing_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        async with running(process.main, FakeContext(Role.TOKENIZER, Config(resolved=resolved(tmp_path)))):
            pass


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, bounds: limits.append((which, bounds[0])))
    process._limit_memory()
    assert limits[0][0] == resource.RLIMIT_AS and limits[0][1] > process._SPARE_MEMORY_BYTES
