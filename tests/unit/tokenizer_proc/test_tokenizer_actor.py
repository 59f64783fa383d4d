"""The shell of the tokenizer process: jobs do not block the loop, replies go to the sender of the job."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizer_rig import resolved

from quartet.runtime.clock import MonotonicClock
from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.errors import ModelError
from quartet.wire.frames import (
    Encode,
    Encoded,
    EncodeFailed,
    IdsPrompt,
    ProcessTable,
    SamplingParams,
    TextPrompt,
    pack_ids,
)
from quartet.wire.ids import Epoch, Role
from tokenizer_proc import actor as actor_module
from tokenizer_proc.actor import TokenizerActor
from tokenizer_proc.job import Encodings
from tokenizer_proc.tokenizer import TextEncoder

API = Source(Role.API, 0, Epoch(1))


class FakeContext:
    """Records what the actor sends and declares."""

    role = Role.TOKENIZER
    rank = 0
    epoch = Epoch(1)
    name = "tokenizer-0"
    process_table = ProcessTable([], False)
    clock = MonotonicClock()

    def __init__(self, folder: Path) -> None:
        self.config = Config(resolved=resolved(folder))
        self.sent: list[tuple[str, Any]] = []
        self.phases: list[tuple[str, float]] = []
        self.progress_count = 0

    def send(self, destination: str, frame: msgspec.Struct) -> None:
        self.sent.append((destination, frame))

    def set_phase(self, phase: str, deadline_s: float = 0.0) -> None:
        self.phases.append((phase, deadline_s))

    def progress(self) -> None:
        self.progress_count += 1

    def blocking_link(self) -> Any:
        raise NotImplementedError


@pytest.fixture
def context(byte_level_folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeContext:
    monkeypatch.setattr(actor_module, "_limit_memory", lambda: None)
    return FakeContext(byte_level_folder)


@pytest.fixture
async def actor(context: FakeContext) -> AsyncIterator[TokenizerActor]:
    made = TokenizerActor(context)
    await made.start()
    yield made
    await made.close()


def text_job(job: int, text: str = "hello") -> Encode:
    return Encode(job, f"api-{job % 2}", TextPrompt(text), SamplingParams())


async def test_each_job_is_answered_to_its_sender(actor: TokenizerActor, context: FakeContext) -> None:
    for job in range(6):
        actor.on_frame(API, text_job(job, "" if job == 3 else "hello"))
    await actor.drain(5.0)
    assert [(to, answer.job) for to, answer in context.sent] == [(f"api-{job % 2}", job) for job in range(6)]
    assert [type(answer) for _, answer in context.sent].count(EncodeFailed) == 1
    assert (context.progress_count, context.phases[-1]) == (6, ("idle", 0.0))
    assert context.phases[0][0] == "encode" and context.phases[0][1] >= 10.0
    gauges, counters = actor.metrics()
    assert (gauges["tokenizer_pending_jobs"], counters["tokenizer_jobs"]) == (0, 5)


async def test_the_loop_runs_on_while_a_job_takes_long(
    actor: TokenizerActor, context: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    go = threading.Event()
    monkeypatch.setattr(Encodings, "answer", lambda self, job: go.wait(5) and Encoded(job.job, b"", "", job.params))
    actor.on_frame(API, text_job(1))
    await asyncio.sleep(0.02)
    assert context.sent == []
    await actor.drain(0.01)
    go.set()
    await actor.drain(5.0)
    assert len(context.sent) == 1


def ids_job(job: int, count: int = 3, **more: bool) -> Encode:
    return Encode(job, "api-0", IdsPrompt(pack_ids([5] * count), **more), SamplingParams())


async def test_ids_are_answered_at_once(actor: TokenizerActor, context: FakeContext) -> None:
    actor.on_frame(API, ids_job(1))
    actor.on_frame(API, ids_job(2, count=0))
    assert [(answer.job, type(answer)) for _, answer in context.sent] == [(1, Encoded), (2, EncodeFailed)]
    gauges, counters = actor.metrics()
    assert (gauges["tokenizer_pending_jobs"], counters["tokenizer_jobs"]) == (0, 1)


async def test_ids_overtake_no_job(actor: TokenizerActor, context: FakeContext) -> None:
    actor.on_frame(API, text_job(1))
    actor.on_frame(API, ids_job(2))
    assert context.sent == []
    await actor.drain(5.0)
    assert [answer.job for _, answer in context.sent] == [1, 2]


@pytest.mark.parametrize("job", [ids_job(1, count=16385), ids_job(1, is_echoed=True)])
async def test_what_takes_longer_leaves_the_loop_free(actor: TokenizerActor, context: FakeContext, job: Encode) -> None:
    actor.on_frame(API, job)
    assert context.sent == []
    await actor.drain(5.0)
    assert len(context.sent) == 1


async def test_a_bug_in_the_loop_is_answered_with_500(
    actor: TokenizerActor, context: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encodings, "answer", lambda *_: 1 // 0)
    actor.on_frame(API, ids_job(1))
    assert context.sent[0][1].status == 500


async def test_a_long_prompt_does_not_stop_the_loop(smollm2_encoder: TextEncoder) -> None:
    gaps: list[float] = []
    done = asyncio.create_task(asyncio.to_thread(smollm2_encoder.encode_rendered, "a b漢 " * 60_000))
    while not done.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        gaps.append(time.monotonic() - before)
    assert len(await done) > 100_000
    assert max(gaps) < 0.25 * sum(gaps), "encoding must release the interpreter lock"


async def test_a_bug_is_answered_with_500(
    actor: TokenizerActor, context: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Encodings, job: Encode) -> None:
        raise RuntimeError("secret prompt text")

    monkeypatch.setattr(Encodings, "answer", broken)
    actor.on_frame(API, text_job(1))
    await actor.drain(5.0)
    (_, answer), *_ = context.sent
    assert answer.status == 500 and "secret" not in answer.message


async def test_too_many_jobs_are_refused(
    actor: TokenizerActor, context: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "MAX_QUEUED_JOBS", 0)
    actor.on_frame(API, text_job(1))
    assert context.sent[0][1].status == 503


async def test_a_missing_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        await TokenizerActor(FakeContext(tmp_path)).start()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Any] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, bounds: limits.append((which, bounds[0])))
    actor_module._limit_memory()
    assert limits[0][0] == resource.RLIMIT_AS and limits[0][1] > actor_module._SPARE_MEMORY_BYTES
