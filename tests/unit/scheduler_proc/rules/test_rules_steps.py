"""Which step comes next, overlap, and how requests end: STEP-5 to STEP-13, examples S1 to S5, D7, D8."""

import pytest
from factory import at_once, greedy, oracle, own_tokens, prompt_that_ends_after, steady

from quartet.wire.frames import Abort, SamplingParams
from quartet.wire.ids import Rid
from scheduler_proc.core import in_flight
from tests.support.core_rig import EOS, CoreRig, Stream


def kind(rig: CoreRig) -> str:
    """Run the oldest step in flight; return P and its tokens, D, or both."""
    step = rig.steps[0]
    tokens = sum(chunk.length for chunk in step.chunks)
    rig.step()
    return (f"P{tokens}" if tokens else "") + ("D" if step.decode else "")


def kinds(rig: CoreRig, count: int) -> str:
    return " ".join(kind(rig) for _ in range(count))


def crowd(requests: int, **config: object) -> CoreRig:
    """A rig with requests that want 100 tokens each and enter one by one."""
    rig = CoreRig(pages=4000, page_size=4, slots=32, prefill_max_requests=1, **config)  # type: ignore[arg-type]
    with at_once(rig):
        for number in range(requests):
            rig.submit(own_tokens(number, 4), params=greedy(100))
    return rig


def test_s1_two_decodes_after_each_prefill() -> None:
    """S1, STEP-5: from the first to the fifth running request and on."""
    rig = crowd(12, prefill_decode_interval=2)
    assert kinds(rig, 20) == "P4 D D P4 D D P4 D D P4 D D P4 D D P4 D D P4 D"


def test_s2_the_interval_counts_from_a_batch_size_on() -> None:
    """S2, STEP-5: below 8 running requests prefills follow each other."""
    rig = crowd(12, prefill_decode_interval=2, prefill_decode_interval_min_bs=8)
    assert kinds(rig, 14) == "P4 P4 P4 P4 P4 P4 P4 P4 D D P4 D D P4"


def test_s3_chunks_wait_for_their_turn_too() -> None:
    """S3, STEP-5: prompt 100, chunk 32, P 16, interval 1, others decoding."""
    rig = CoreRig(pages=400, page_size=16, chunked_prefill_size=32, prefill_decode_interval=1)
    for number in range(2):
        rig.submit(own_tokens(number, 4), params=greedy(100))
    kinds(rig, 8)
    rig.submit(own_tokens(9, 100), params=greedy(5))
    assert "P32 D P32 D P32 D P4 D" in kinds(rig, 12)


def test_step5_without_decode_rows_a_prefill_does_not_wait() -> None:
    """STEP-5: with min_bs 0 the original idles when nothing runs."""
    rig = CoreRig(pages=400, page_size=4, slots=8, prefill_max_requests=1, prefill_decode_interval=3)
    for number in range(3):
        rig.submit(own_tokens(number, 4), params=greedy(1))
    assert kinds(rig, 3) == "P4 P4 P4"


def test_step5_the_interval_runs_down_while_no_request_waits() -> None:
    """STEP-5: `left` falls at each later step, so a prompt that comes long after a prefill is not held up."""
    rig = crowd(1, prefill_decode_interval=3)
    kinds(rig, 12)
    rig.submit(own_tokens(9, 4), params=greedy(5))
    assert kinds(rig, 3) == "D D P4"  # two steps were in flight when it came


def test_step6_free_slots_before_a_prefill() -> None:
    """STEP-6: not below three free slots while others decode; a step that frees none admits no request."""
    rig = CoreRig(pages=4000, page_size=4, slots=4, prefill_max_requests=1, min_free_slots_delay=3)
    with at_once(rig):
        rids = [rig.submit(own_tokens(number, 4), params=greedy(6 + number)) for number in range(4)]
    seen = []
    while rig.steps:
        seen.append(kind(rig))
        assert len(rig.scheduler._batch.free_slots) >= 2
    # Two run; the third enters when the first has left, and so on.
    assert " ".join(seen[:12]) == "P4 P4 D D D D D P4 D P4 D D"
    assert all(rig.streams[rid, 0].ending == "length" for rid in rids)


def test_step6_more_than_there_are_slots_does_not_stop_an_empty_engine() -> None:
    """STEP-6: and a chunk in progress goes on beside rows."""
    rig = CoreRig(pages=400, page_size=4, slots=2, min_free_slots_delay=5, chunked_prefill_size=8)
    rids = [rig.submit(own_tokens(number, 20), params=greedy(4)) for number in range(3)]
    rig.run()
    assert [len(rig.outputs(rid)) for rid in rids] == [4, 4, 4]


def test_step8_decodes_come_first_and_the_rest_of_the_budget_prefills() -> None:
    """STEP-8: every running row is in every step, chunks or not."""
    rig = CoreRig(pages=400, page_size=4, chunked_prefill_size=16, step_order="decode_first")
    for number in range(3):
        rig.submit(own_tokens(number, 4), params=greedy(40))
    kinds(rig, 5)
    rig.submit(own_tokens(9, 60), params=greedy(4))
    seen = kinds(rig, 9).split()
    assert all("D" in each for each in seen)
    chunks = [int(each[1:-1]) for each in seen if each.startswith("P")]
    assert sum(chunks) == 60 and max(chunks) == 16 - 3


def test_step8_no_request_enters_in_a_step_that_retracts() -> None:
    """STEP-8."""
    rig = CoreRig(pages=60, page_size=4, slots=6, step_order="decode_first", test_retract=True)
    for number in range(8):
        rig.submit(own_tokens(number, 10), params=steady(20))
    retracting, before = 0, 0.0
    while rig.step():
        retractions = rig.scheduler.snapshot()[1]["retractions"]
        if retractions > before and rig.steps:
            retracting += 1
            # The frame just issued is the last in flight.
            assert not rig.steps[-1].enter
        before = retractions
    assert retracting > 2


def test_step9_a_step_is_issued_before_the_one_ahead_of_it_is_back() -> None:
    """STEP-9: and names no token: the worker takes the row's last one from the slot."""
    rig = CoreRig()
    rid = rig.submit([5, 6, 7], params=greedy(10))
    assert [(bool(step.chunks), step.decode) for step in rig.steps] == [(True, False), (False, True)]
    assert rig.outputs(rid) == []
    (held,) = rig.scheduler._table.choices(rid)
    assert (held.launched, held.in_flight, len(held.output_ids)) == (2, 2, 0)


def launches(rig: CoreRig) -> tuple[int, int]:
    """Run to the end; return (prefill steps, decode steps)."""
    prefills = decodes = 0
    while rig.steps:
        prefills += bool(rig.steps[0].chunks)
        decodes += rig.steps[0].decode
        rig.step()
    return prefills, decodes


def test_d7_a_length_finish_is_not_launched_again() -> None:
    """D7, STEP-10: M 4 takes one prefill and three decode rows."""
    rig = CoreRig()
    rig.submit([9, 8, 7], params=greedy(4))
    assert launches(rig) == (1, 3)
    assert rig.scheduler.snapshot()[1]["wasted_rows"] == 0


@pytest.mark.parametrize(("outstanding", "decodes", "wasted"), [(2, 3, 1), (1, 2, 0)])
def test_d8_the_end_of_sequence_is_seen_one_step_late(
    outstanding: int, decodes: int, wasted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D8, STEP-10: EOS is output 3; with overlap one more row is computed and dropped."""
    monkeypatch.setattr(in_flight, "MAX_STEPS", outstanding)
    rig = CoreRig()
    rid = rig.submit(prompt_that_ends_after(3), 20)
    assert launches(rig) == (1, decodes)
    assert len(rig.outputs(rid)) == 3 and rig.streams[rid, 0].ending == "stop"
    assert rig.scheduler.snapshot()[1]["wasted_rows"] == wasted
    assert rig.scheduler.is_idle()


def test_step11_pages_are_free_when_the_end_is_known() -> None:
    """STEP-11: though a row of it is in flight, the next request is given its pages at once, in a later launch."""
    rig = CoreRig(pages=6, page_size=4, slots=1)
    first = rig.submit(prompt_that_ends_after(3, length=12), 9)
    second = rig.submit(own_tokens(2, 14), params=greedy(3))
    while rig.streams[first, 0].ending is None:
        rig.step()
    # The wasted row, and behind it the prefill of the second, which needs pages of the first.
    assert [bool(step.enter) for step in rig.steps] == [False, True]
    rig.run()
    assert rig.outputs(second) == oracle(own_tokens(2, 14), 3, eos=-1)


def test_step12_a_stop_token_comes_before_the_length() -> None:
    """STEP-12: the last token that may be made is the end of sequence."""
    rig = CoreRig()
    rid = rig.submit(prompt_that_ends_after(5), 5)
    rig.run()
    assert rig.streams[rid, 0].ending == "stop"
    end = rig.streams[rid, 0].end
    assert end is not None and (end.count, end.hidden, end.matched) == (5, 1, None)


@pytest.mark.parametrize(
    ("params", "ending", "count"),
    [
        (SamplingParams(max_new_tokens=8, ignore_eos=True), "length", 8),
        (SamplingParams(max_new_tokens=8, min_new_tokens=3), "length", 8),
        (SamplingParams(max_new_tokens=8, min_new_tokens=2), "stop", 3),
    ],
)
def test_step12_an_end_of_sequence_that_does_not_count(params: SamplingParams, ending: str, count: int) -> None:
    """STEP-12: not with ignore_eos, not while fewer than min_new_tokens came before it."""
    rig = CoreRig()
    prompt = prompt_that_ends_after(3)
    assert EOS not in oracle(prompt, 8, eos=-1)[3:]
    rid = rig.submit(prompt, params=params)
    rig.run()
    assert (rig.streams[rid, 0].ending, len(rig.outputs(rid))) == (ending, count)


def test_step12_a_stop_token_of_the_client_is_named() -> None:
    """STEP-12: also with ignore_eos."""
    third = oracle([5, 6, 7], 3, eos=-1)[2]
    rig = CoreRig()
    rid = rig.submit([5, 6, 7], params=greedy(9, stop_token_ids=(third,)))
    rig.run()
    end = rig.streams[rid, 0].end
    assert end is not None and (end.reason, end.matched, end.count) == ("stop", third, 3)


@pytest.mark.parametrize("config", [{}, {"enable_mixed_chunk": True}, {"step_order": "decode_first"}])
def test_step13_overlap_changes_no_token(config: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """STEP-13: with shortage, chunks and shared prefixes."""

    def outputs(outstanding: int) -> list[list[int]]:
        monkeypatch.setattr(in_flight, "MAX_STEPS", outstanding)
        rig = CoreRig(pages=40, page_size=4, slots=6, prefill_max_requests=1, init_new_token_ratio=0.05, **config)  # type: ignore[arg-type]
        rids = [rig.submit([*range(1, 12), number + 1], params=steady(30 + number)) for number in range(8)]
        rig.run()
        assert rig.scheduler.snapshot()[1]["retractions"] > 0
        return [rig.outputs(rid) for rid in rids]

    assert outputs(1) == outputs(2)


def test_s5_an_abort_is_for_one_request_exactly() -> None:
    """S5, 6.1: r1 and r10 live; r1 is aborted."""
    rig = CoreRig()
    template = rig.streams[rig.submit([5, 6, 7], params=greedy(20)), 0].submit
    for name in (b"r1", b"r10"):
        frame = type(template)(Rid(name), *(getattr(template, field) for field in template.__struct_fields__[1:]))
        rig.streams[Rid(name), 0] = Stream(frame)
        rig.send(frame)
    rig.step()
    rig.send(Abort(Rid(b"r1")))
    assert {bytes(rid) for rid in rig.scheduler._table._by_rid} == {b"r10", bytes(16)}
    rig.streams[Rid(b"r1"), 0].ending = "aborted"
    rig.run()
    assert len(rig.outputs(Rid(b"r10"))) == 20


def test_step2_all_rows_decode_in_a_step_or_none() -> None:
    """RET-12, RET-9: a prefill step decodes no row, a decode step every row past its prompt."""
    rig = CoreRig(pages=100, page_size=4, slots=4, chunked_prefill_size=8)
    prompts = own_tokens(1, 4), own_tokens(2, 30)
    first, second = (rig.submit(prompt, params=greedy(count)) for prompt, count in zip(prompts, (30, 3), strict=True))
    kinds = set()
    while rig.steps:
        step = rig.steps[0]
        kinds.add((bool(step.chunks), step.decode))
        rig.step()
    assert kinds == {(True, False), (False, True)}
    assert [rig.outputs(first), rig.outputs(second)] == [oracle(prompts[0], 30, -1), oracle(prompts[1], 3, -1)]
