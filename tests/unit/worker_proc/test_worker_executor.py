"""The executor and the actor over an in-memory link: hellos, stale frames, failures, two steps in flight."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from executor_rig import WORKER, Rig, WorkerContext, entering, settings, step
from llguidance import LLTokenizer
from tiny_models import TINY, make_weights, resolved, write_folder

from quartet.wire.config import Config, WorkerConfig
from quartet.wire.errors import ModelError
from quartet.wire.frames import (
    Chunk,
    CompileGrammar,
    GrammarCompiled,
    SchedulerHello,
    Step,
    StepFailed,
    StepResult,
    WorkerHello,
    unpack_ids,
)
from quartet.wire.ids import Epoch
from tests.support.fake_context import running
from tests.support.grammars import regex, tiny_tokenizer
from worker_proc.contract import DeviceLostError, OutOfMemoryError
from worker_proc.executor import IDLE_DEADLINE_S
from worker_proc.grammar.compiler import GrammarCompiler
from worker_proc.process import main


def test_hello_is_repeated_until_answered_and_ready_comes_last() -> None:
    rig = Rig()
    assert rig.run() == []
    rig.context.show_scheduler(1)
    (hello,) = rig.run()
    assert isinstance(hello, WorkerHello)
    assert (hello.scheduler_epoch, hello.is_ready, hello.page_count, hello.max_slots) == (1, False, 100, 4)
    rig.context.manual_clock.advance(1.0)
    assert rig.run() == [hello]
    assert not rig.ready
    rig.context.arrive(SchedulerHello(WORKER, 90))
    (ready,) = rig.run()
    assert (ready.is_ready, ready.page_count) == (True, 90)
    assert rig.ready == [rig.runner.facts()]
    rig.context.manual_clock.advance(10.0)
    assert rig.run() == [ready], "the last hello may have been lost"
    rig.context.arrive(entering(1))
    rig.run()
    rig.context.manual_clock.advance(10.0)
    assert rig.run() == []
    assert [phase for phase, _ in rig.context.phases] == [
        "loading weights",
        "idle",
        "warming up",
        "idle",
        "step",
        "idle",
    ]


def test_duplicate_frames_are_handled_once() -> None:
    rig = Rig()
    rig.connect()
    rig.context.arrive(SchedulerHello(WORKER, 100))
    assert rig.run() == []
    rig.context.arrive(entering(1))
    (result,) = rig.run()
    rig.context.arrive(entering(1))
    rig.context.arrive(SchedulerHello(WORKER, 100))
    assert rig.run() == []
    rig.context.arrive(step(2))
    (result,) = rig.run()
    assert isinstance(result, StepResult) and len(result.slots) == 4


def test_a_new_scheduler_finds_no_slots_and_frames_of_the_old_one_are_stale() -> None:
    rig = Rig()
    rig.connect(epoch=1)
    rig.context.arrive(entering(1))
    rig.run()
    rig.connect(epoch=2)
    rig.context.arrive(step(7), epoch=1)
    rig.context.arrive(SchedulerHello(WORKER, 100), epoch=1)
    assert rig.run() == []
    assert rig.executor.counters.stale_frames == 2
    rig.context.arrive(step(1), epoch=2)
    (result,) = rig.run()
    assert isinstance(result, StepResult)
    assert (result.scheduler_epoch, result.slots) == (2, b"")


def test_frames_for_another_incarnation_of_the_worker_are_dropped() -> None:
    rig = Rig()
    rig.context.show_scheduler(1)
    rig.run()
    rig.context.arrive(SchedulerHello(Epoch(3), 100))
    assert rig.run() == []
    rig.context.arrive(SchedulerHello(WORKER, 100))
    rig.run()
    rig.context.arrive(step(1, worker=3))
    assert rig.run() == []
    assert rig.executor.counters.stale_frames == 2


def test_another_page_count_than_the_allocated_one_ends_the_worker() -> None:
    rig = Rig()
    rig.connect()
    rig.context.show_scheduler(2)
    rig.context.arrive(SchedulerHello(WORKER, 50), epoch=2)
    with pytest.raises(RuntimeError, match="100 pages are allocated, the scheduler wants 50"):
        rig.run()


def test_a_contradictory_step_fails_and_the_worker_continues() -> None:
    rig = Rig()
    rig.connect()
    rig.context.arrive(entering(1))
    rig.context.arrive(step(2, chunks=[Chunk(3, 1, True)], decode=False))
    rig.context.arrive(step(3))
    first, failed, third = rig.run()
    assert isinstance(failed, StepFailed)
    assert (failed.step, failed.kind, failed.scheduler_epoch) == (2, "error", 1)
    assert "slot 3 is not in prefill" in failed.message
    assert isinstance(first, StepResult) and isinstance(third, StepResult)
    assert unpack_ids(third.slots) == [0]


def test_running_out_of_memory_has_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.connect()

    def launch(frame: Step, epoch: Epoch) -> Any:
        raise OutOfMemoryError("no 7 GiB")

    monkeypatch.setattr(rig.runner, "launch", launch)
    rig.context.arrive(step(1))
    (failed,) = rig.run()
    assert isinstance(failed, StepFailed)
    assert (failed.kind, failed.message) == ("oom", "OutOfMemoryError: no 7 GiB")


def test_a_lost_device_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.connect()

    def launch(frame: Step, epoch: Epoch) -> Any:
        raise DeviceLostError("an illegal memory access was encountered")

    monkeypatch.setattr(rig.runner, "launch", launch)
    rig.context.arrive(step(1))
    with pytest.raises(DeviceLostError):
        rig.run()


def test_steps_are_declared_with_their_deadline_and_count_as_progress() -> None:
    rig = Rig()
    rig.connect()
    rig.context.phases.clear()
    before = rig.context.steps_of_progress
    rig.context.arrive(entering(1))
    rig.run()
    assert rig.context.phases == [("step", 60.0), ("idle", IDLE_DEADLINE_S)]
    assert rig.context.steps_of_progress > before
    assert rig.executor.counters.sampled_tokens == 1


async def test_the_process_is_ready_when_the_scheduler_has_been_answered() -> None:
    context = WorkerContext(settings())
    context.show_scheduler(1)
    context.arrive(SchedulerHello(WORKER, 100))
    context.arrive(entering(1))
    async with running(main, context, 10):
        assert context.facts is not None and context.facts["kv_tokens"] == 400
        while context.metrics().counters["worker_sampled_tokens"] < 1:
            await asyncio.sleep(0.005)
    assert context.metrics().counters["worker_steps"] == 1


async def test_a_model_that_cannot_be_loaded_fails_the_start(tmp_path: Path) -> None:
    config = Config(worker=WorkerConfig(device="cpu"), resolved=resolved(tmp_path, TINY))
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        async with running(main, WorkerContext(config)):
            pass


async def test_metrics_say_how_long_each_phase_of_the_start_took(tmp_path: Path) -> None:
    write_folder(tmp_path, TINY, make_weights(TINY))
    worker = WorkerConfig(device="cpu", max_total_tokens=400, page_size=4)
    context = WorkerContext(Config(worker=worker, resolved=resolved(tmp_path, TINY)))
    context.show_scheduler(1)
    context.arrive(SchedulerHello(WORKER, 100))
    async with running(main, context):
        phases = {name.split('"')[1]: seconds for name, seconds in context.metrics().gauges.items()}
    assert set(phases) == {"imports", "load", "kernels", "warm_up", "graphs"} and min(phases.values()) >= 0.0
    assert phases["load"] > 0.0 and phases["warm_up"] > 0.0


def test_a_grammar_is_compiled_beside_the_steps() -> None:
    rig = Rig()
    may_load = threading.Event()

    def load() -> LLTokenizer:
        may_load.wait()
        return tiny_tokenizer()

    rig.runner.grammars = GrammarCompiler(load)
    rig.connect()
    rig.context.arrive(CompileGrammar(b"one", regex().grammar.source))
    rig.context.arrive(CompileGrammar(b"two", "garbage {"))
    rig.context.arrive(entering(1))
    for _ in range(9):
        rig.executor.poll_once()
    assert [type(frame) for frame in rig.context.link.sent] == [StepResult]
    may_load.set()
    _, *answers = rig.run()
    one, two = sorted(answers, key=lambda answer: answer.key)
    assert one == GrammarCompiled(Epoch(1), b"one") and two.key == b"two" and two.error
