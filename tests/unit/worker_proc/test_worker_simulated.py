"""The simulated worker: a pure function of the ids, for every way of cutting the work into steps."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_feeder import GREEDY, SCHEDULER, WORKER, StepFeeder
from tiny_models import TINY, resolved

from quartet.runtime.clock import ManualClock
from quartet.wire.config import Config, SchedulerConfig, WorkerConfig
from quartet.wire.frames import Chunk, SamplingParams, Step, unpack_ids
from worker_proc.contract import StepError
from worker_proc.simulated import HashModel, SimulatedRunner

VOCAB, EOS = 40, (2, 39)


def make_runner(
    page_size: int = 4, step_ms: float = 0.0, clock: ManualClock | None = None, slots: int = 8
) -> SimulatedRunner:
    config = Config(
        worker=WorkerConfig(
            page_size=page_size, max_total_tokens=1600, simulated_worker=True, simulated_step_ms=step_ms
        ),
        scheduler=SchedulerConfig(max_running_requests=slots),
        resolved=resolved(Path(), TINY, vocab_size=VOCAB, eos_token_ids=EOS),
    )
    clock = clock or ManualClock()
    runner = SimulatedRunner(config, clock, clock.advance)
    runner.allocate(runner.capacity.page_count)
    return runner


ids_strategy = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(ids=ids_strategy, cuts=st.lists(st.integers(1, 9), max_size=4), split=st.integers(0, 11))
def test_chunks_and_resumption_give_the_same_ids(ids: list[int], cuts: list[int], split: int) -> None:
    runner = make_runner()
    wanted = runner.model.continuation(ids, 12)
    assert not set(wanted) & set(EOS)
    feeder = StepFeeder(runner)
    known, start = ids + wanted[:split], 0
    enter = [feeder.enter(3, known, 12, prompt_length=len(ids))]
    for cut in [*cuts, len(known)]:
        length = min(cut, len(known) - start)
        if length:
            start += length
            feeder.step(enter, [Chunk(3, length, start == len(known))])
            enter = []
    while len(feeder.outputs[3]) < 12 - split:
        feeder.step()
    assert feeder.outputs[3] == wanted[split:]
    feeder.step(release=[3])


@given(ids=ids_strategy, at=st.integers(0, 29), token=st.integers(0, VOCAB - 1))
def test_one_altered_lost_or_doubled_id_changes_the_state(ids: list[int], at: int, token: int) -> None:
    model = HashModel(VOCAB, EOS, 64)
    at %= len(ids)
    state = model.extend(0, np.array(ids))
    assert model.extend(0, np.array([*ids[:at], *ids[at + 1 :]], dtype=np.int64)) != state
    assert model.extend(0, np.array([*ids[:at], ids[at], *ids[at:]])) != state
    if ids[at] != token:
        assert model.extend(0, np.array([*ids[:at], token, *ids[at + 1 :]])) != state


def test_a_prefix_that_the_pages_do_not_hold_fails_the_step() -> None:
    runner = make_runner()
    feeder = StepFeeder(runner)
    ids = list(range(3, 13))
    enter = feeder.enter(0, ids, 8)
    feeder.step([enter], [Chunk(0, 10, True)])
    shared = unpack_ids(enter.pages)[:2]
    good = feeder.enter(1, [*ids[:8], 20], 8, cached=(8, shared))
    feeder.step([good], [Chunk(1, 1, True)])
    assert feeder.outputs[1] == runner.model.continuation([*ids[:8], 20], 1)
    bad = feeder.enter(2, [*ids[:7], 30, 20], 8, cached=(8, shared))
    with pytest.raises(StepError, match="pages of slot 2 do not hold the 8 ids"):
        feeder.step([bad], [Chunk(2, 1, True)])


def test_a_page_of_two_sequences_fails_the_release() -> None:
    feeder = StepFeeder(make_runner())
    first = feeder.enter(0, [3, 4, 5], 0)
    feeder.step([first], [Chunk(0, 3, True)])
    feeder.free_pages.append(unpack_ids(first.pages)[0])
    feeder.step([feeder.enter(1, [6, 7], 0)], [Chunk(1, 2, True)])
    with pytest.raises(StepError, match="pages of slot 0 were written by another sequence"):
        feeder.step(release=[0])


def test_steps_take_their_simulated_time_one_after_the_other() -> None:
    clock = ManualClock(100.0)
    runner = make_runner(step_ms=10.0, clock=clock)
    pending = [runner.launch(Step(WORKER, n, b"", [], b"", [], True), SCHEDULER) for n in (1, 2)]
    assert not pending[0].is_done()
    pending[0].wait()
    assert clock.now() == pytest.approx(100.010)
    assert pending[0].is_done() and not pending[1].is_done()
    pending[1].wait()
    assert clock.now() == pytest.approx(100.020)


def test_logprobs_are_returned_for_requests_that_want_them() -> None:
    feeder = StepFeeder(make_runner())
    with_logprobs = SamplingParams(temperature=0.0, logprobs=2)
    result = feeder.step(
        [feeder.enter(0, [3], 4, GREEDY), feeder.enter(1, [3], 4, with_logprobs)],
        [Chunk(0, 1, True), Chunk(1, 1, True)],
    )
    assert [row for row, _ in result.logprobs] == [1]
    assert result.logprobs[0][1].top[0][0] == feeder.outputs[1][0]
    assert len(result.logprobs[0][1].top) == 2


def test_a_simulated_worker_never_loads_torch() -> None:
    code = "import worker_proc.process, worker_proc.simulated, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_row_costs_about_a_microsecond_at_most() -> None:
    """A generous bound on a busy machine: it guards against a Python loop over the rows, not against noise."""
    feeder = StepFeeder(make_runner(page_size=1, slots=256))
    feeder.step(
        [feeder.enter(slot, [3 + slot % 30], 4) for slot in range(256)], [Chunk(slot, 1, True) for slot in range(256)]
    )
    best = min(_timed(feeder) for _ in range(4))
    assert best < 256 * 4e-6


def _timed(feeder: StepFeeder) -> float:
    frame = Step(WORKER, 9, b"", [], b"", [], True)
    started = time.perf_counter()
    feeder.runner.launch(frame, SCHEDULER).wait()
    return time.perf_counter() - started
