"""The scheduler end to end against the strict worker: sharing, chunks, retraction, replay, failures."""

import pytest

from quartet.wire.frames import Abort, HeldRequests, LiveRequest, LiveRequests, SamplingParams, Stopped
from quartet.wire.ids import Handle
from scheduler_proc.core.events import BeginDrain, Tick
from tests.support.core_rig import EOS, VOCAB, CoreRig
from tests.support.strict_worker import continuation


def expected(prompt: list[int], max_new: int) -> list[int]:
    return continuation(prompt, max_new, VOCAB, EOS)


def check_complete(rig: CoreRig, prompts: dict[bytes, tuple[list[int], int]]) -> None:
    for rid, (prompt, max_new) in prompts.items():
        stream = rig.streams[rid, 0]  # type: ignore[index]
        assert stream.outputs == expected(prompt, max_new)
        assert stream.ending == ("stop" if stream.outputs[-1:] == [EOS] else "length")
    assert rig.scheduler.is_idle()


def test_one_request_runs_to_its_length() -> None:
    rig = CoreRig()
    rid = rig.submit([5, 6, 7], 6)
    rig.run()
    check_complete(rig, {rid: ([5, 6, 7], 6)})


@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_many_requests_with_shared_prefixes_get_their_own_tokens(page_size: int) -> None:
    rig = CoreRig(pages=2048 // page_size, page_size=page_size, slots=8)
    prompts = {}
    for i in range(24):
        prompt = [*range(1, 40), *([3] * (i % 5)), i % 7 + 1]
        prompts[rig.submit(prompt, 5 + i % 9)] = (prompt, 5 + i % 9)
    rig.run()
    check_complete(rig, prompts)
    assert rig.scheduler.snapshot()[1]["cached_tokens"] > 0


def test_requests_of_one_step_share_a_prefix() -> None:
    rig = CoreRig(pages=256, page_size=4, chunked_prefill_size=-1)
    shared = list(range(1, 33))
    first, second = rig.submit([*shared, 50], 4), rig.submit([*shared, 51], 4)
    third = rig.submit([*shared, 52], 4)
    rig.run()
    check_complete(rig, {first: ([*shared, 50], 4), second: ([*shared, 51], 4), third: ([*shared, 52], 4)})
    assert rig.scheduler.snapshot()[1]["cached_tokens"] >= 2 * 32


def test_a_long_prompt_is_computed_in_chunks() -> None:
    rig = CoreRig(pages=64, page_size=16, chunked_prefill_size=32)
    prompt = [i % 90 + 1 for i in range(100)]
    rig.submit(prompt, 3)
    lengths = []
    while rig.steps:
        lengths += [chunk.length for chunk in rig.steps[0].chunks]
        rig.step()
    assert lengths == [32, 32, 32, 4]  # A17


@pytest.mark.parametrize("max_new", [0, 1])
def test_requests_for_no_or_one_token(max_new: int) -> None:
    rig = CoreRig()
    rid = rig.submit([9, 8, 7], max_new)
    rig.run()
    assert rig.outputs(rid) == expected([9, 8, 7], max_new)
    assert rig.streams[rid, 0].ending == "length"
    assert rig.scheduler.is_idle()


def test_length_finish_launches_one_prefill_and_m_minus_one_decodes() -> None:  # D7
    rig = CoreRig()
    rig.submit([9, 8, 7], 4, params=SamplingParams(max_new_tokens=4, ignore_eos=True))
    decodes = 0
    while rig.steps:
        decodes += rig.steps[0].decode
        rig.step()
    assert decodes == 3


def test_shortage_retracts_and_outputs_do_not_change() -> None:
    rig = CoreRig(pages=16, page_size=4, slots=8, init_new_token_ratio=0.1)
    prompts = {}
    for i in range(8):
        prompt = [i + 1] * 9
        prompts[rig.submit(prompt, 30)] = (prompt, 30)
    rig.run()
    check_complete(rig, prompts)
    assert rig.scheduler.snapshot()[1]["retractions"] > 0


def test_worker_loss_pauses_and_loses_nothing() -> None:
    rig = CoreRig(pages=128)
    prompts = {}
    for i in range(5):
        prompt = [i + 1, 2, 3, 4, 5, 6]
        prompts[rig.submit(prompt, 20)] = (prompt, 20)
    for _ in range(7):
        rig.step()
    rig.worker_lost()
    late = rig.submit([60, 61], 5)
    prompts[late] = ([60, 61], 5)
    rig.worker_up()
    rig.run()
    check_complete(rig, prompts)


def test_rebinding_continues_without_a_new_prefill() -> None:
    rig = CoreRig()
    rid = rig.submit([5, 6, 7, 8], 20)
    for _ in range(6):
        rig.step()
    steps = rig.scheduler.snapshot()[1]["prefill_steps"]
    del rig.streams[rid, 0].outputs[2:]  # the rest was lost with the detokenizer
    rig.resubmit(rid)
    rig.run()
    check_complete(rig, {rid: ([5, 6, 7, 8], 20)})
    assert rig.scheduler.snapshot()[1]["prefill_steps"] == steps


def test_a_new_scheduler_resumes_from_what_was_delivered() -> None:
    rig = CoreRig()
    prompt = [5, 6, 7, 8]
    rid = rig.submit(prompt, 20)
    for _ in range(5):
        rig.step()
    successor = CoreRig()
    successor.streams.update(rig.streams)
    successor.resubmit(rid)
    successor.run()
    check_complete(successor, {rid: (prompt, 20)})


def test_a_replay_whose_output_is_complete_only_gets_its_end() -> None:
    rig = CoreRig()
    prompt = [5, 6, 7, 8]
    rid = rig.submit(prompt, 6)
    rig.run()
    stream = rig.streams[rid, 0]
    stream.ending = None
    steps = rig.scheduler.snapshot()[1]["prefill_steps"]
    rig.resubmit(rid)
    rig.run()
    assert stream.ending is not None and stream.outputs == expected(prompt, 6)
    assert rig.scheduler.snapshot()[1]["prefill_steps"] == steps


def test_a_stop_string_drops_the_surplus() -> None:
    rig = CoreRig()
    rid = rig.submit([5, 6, 7, 8], 20)
    for _ in range(8):
        rig.step()
    handle = next(iter(rig.handles))
    rig.send(Stopped(Handle(handle), rid, 0, 0, 2))
    rig.run()
    assert rig.scheduler.is_idle()


def test_abort_frees_everything_and_matches_exactly() -> None:
    rig = CoreRig()
    first, second = rig.submit([5, 6, 7], 20), rig.submit([5, 6, 8], 20)
    rig.step()
    rig.send(Abort(first))
    rig.streams[first, 0].ending = "aborted"
    rig.run()
    assert rig.outputs(second) == expected([5, 6, 8], 20)
    assert rig.scheduler.is_idle()


def test_what_the_api_does_not_name_twice_is_freed() -> None:
    rig = CoreRig()
    first, second = rig.submit([5, 6, 7], 60), rig.submit([5, 6, 8], 60)
    live = LiveRequests("api-0", [LiveRequest(second, 0, 0)])
    rig.send(live)
    held = rig.client.other.pop()
    assert isinstance(held, HeldRequests) and {item.rid for item in held.held} == {first, second}
    rig.send(live)
    held = rig.client.other.pop()
    assert isinstance(held, HeldRequests) and {item.rid for item in held.held} == {second}
    rig.run()
    assert rig.scheduler.is_idle()


def test_the_queue_limit_refuses_with_503() -> None:
    rig = CoreRig(slots=1, max_queued_requests=2)
    rids = [rig.submit([i + 1, 2, 3], 5) for i in range(5)]
    assert [rig.streams[rid, 0].ending for rid in rids] == [None, None, None, "queue_full", "queue_full"]
    rig.run()


def test_draining_refuses_new_requests_and_finishes_old_ones() -> None:
    rig = CoreRig()
    old = rig.submit([5, 6, 7], 9)
    rig.send(BeginDrain())
    new = rig.submit([5, 6, 8], 9)
    assert rig.streams[new, 0].ending == "draining"
    rig.run()
    assert rig.outputs(old) == expected([5, 6, 7], 9)


def test_a_prompt_longer_than_pool_or_context_is_refused() -> None:
    rig = CoreRig(pages=8, page_size=4, context=4096)
    too_long = rig.submit([1] * 32, 4)
    assert rig.streams[too_long, 0].ending == "context_length_exceeded"
    rig = CoreRig(pages=4096, page_size=4, context=64)
    too_long = rig.submit([1] * 60, 4)
    assert rig.streams[too_long, 0].ending == "context_length_exceeded"


def test_a_deadline_ends_a_request_with_408() -> None:
    rig = CoreRig()
    rid = rig.submit([5, 6, 7], 60, deadline_s=2.0)
    assert rig.scheduler.next_deadline() == 2.0
    rig.now = 2.5
    rig.send(Tick())
    assert rig.streams[rid, 0].ending == "deadline_exceeded"
    rig.run()
    assert rig.scheduler.is_idle()


def test_a_failed_step_is_computed_again() -> None:
    rig = CoreRig()
    prompts = {}
    for i in range(3):
        prompt = [i + 1, 2, 3, 4, 5]
        prompts[rig.submit(prompt, 8)] = (prompt, 8)
    rig.step()
    rig.fail_step()
    rig.run()
    check_complete(rig, prompts)


def test_a_request_that_fails_alone_is_failed() -> None:
    rig = CoreRig()
    rid = rig.submit([5, 6, 7], 8)
    for _ in range(3):
        rig.fail_step()
    assert rig.streams[rid, 0].ending == "internal_error"
    rig.run()
    assert rig.scheduler.is_idle()


def test_the_same_events_give_the_same_frames() -> None:
    def record() -> list[object]:
        rig = CoreRig(pages=24, page_size=4, init_new_token_ratio=0.1)
        seen: list[object] = []
        handle = rig.scheduler.handle
        rig.scheduler.handle = lambda event, now: seen.extend(sent := handle(event, now)) or sent  # type: ignore
        for i in range(6):
            rig.submit([i + 1] * 9, 20)
        rig.run()
        return seen

    assert record() == record()
