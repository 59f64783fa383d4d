"""Frames that make no sense: the first storms of the fuzzer, each finding by itself, and a longer run."""

import os

import msgspec
import pytest

from quartet.wire.codec import Decoder, Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import SchedulerHello, Submit, Tokens
from quartet.wire.ids import Epoch, Role
from tests.fuzz import frames
from tests.support.request_kinds import SIMULATED, make_engine, prepared
from tests.support.wire_samples import BOOT, INBOXES, SAMPLES, sealed, tag


def test_the_first_storms() -> None:
    count, findings = frames.fuzz(iter(range(6)))
    assert findings == [] and count == 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_new_storms_for_two_minutes() -> None:
    _, findings = frames.fuzz(frames.until(120), seed=int.from_bytes(os.urandom(4)))
    assert findings == []


@pytest.mark.parametrize("length", [1, 6, 8])
def test_columns_of_other_lengths_do_not_pass_the_codec(length: int) -> None:
    sample = next(frame for frame in SAMPLES if isinstance(frame, Tokens))
    fields = list(msgspec.structs.astuple(sample))
    fields[2] = bytes(length)
    body = msgspec.msgpack.encode([tag(sample), *fields])
    with pytest.raises(FrameError, match="body"):
        Decoder(INBOXES["detok"], BOOT).decode(sealed(body, tag(sample)))


def test_a_worker_in_a_session_that_was_never_begun_is_brought_back() -> None:
    made, expected = prepared("greedy", SIMULATED, frames.PROMPTS)
    engine = make_engine("greedy", frames.Random(1))
    running = [engine.begin(request, answer) for request, answer in zip(made, expected, strict=True)]
    engine.steps(60)
    hello = SchedulerHello(Epoch(1), 128, session=64, last_step=1)
    for _, data in zip(range(1), engine.wire.send(Source(Role.SCHEDULER, 0, Epoch(1)), "worker-0", hello), strict=True):
        engine.pump.put("worker-0", data)
    engine.finish(running)
    for history in running:
        history.check()
    engine.check_nothing_left()


def test_a_prompt_of_nothing_holds_up_no_other() -> None:
    made, expected = prepared("greedy", SIMULATED, frames.PROMPTS)
    engine = make_engine("greedy", frames.Random(1))
    maker = frames.FrameMaker(frames.Random(2))
    submit = next(made for made in iter(lambda: maker.frame(INBOXES["scheduler"]), None) if hasattr(made, "prompt_ids"))
    empty = msgspec.structs.replace(submit, prompt_ids=b"", output_ids=b"", reply_to="api-0")
    for data in engine.wire.send(Source(Role.API, 0, Epoch(1)), "scheduler-0", empty):
        engine.pump.put("scheduler-0", data)
    running = [engine.begin(request, answer) for request, answer in zip(made, expected, strict=True)]
    engine.finish(running)
    for history in running:
        history.check()
    engine.check_nothing_left()


def test_a_number_that_sizes_memory_has_a_bound_in_the_frame() -> None:
    submit = next(frame for frame in SAMPLES if isinstance(frame, Submit))
    params = msgspec.structs.replace(submit.params, logprobs=2**31)
    body = msgspec.msgpack.encode(msgspec.structs.replace(submit, params=params))
    with pytest.raises(FrameError, match="body"):
        Decoder(INBOXES["scheduler"], BOOT).decode(sealed(body, tag(submit)))
