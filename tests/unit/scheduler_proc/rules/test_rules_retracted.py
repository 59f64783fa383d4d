"""What becomes of a retracted request: RET-6, RET-7, RET-10 to RET-12, RET-14, RET-16, example D9."""

from typing import Any

import pytest
from factory import Bench, events, greedy, oracle, own_tokens, steady

from quartet.wire.frames import Abort, unpack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.request import Request, RequestState
from tests.support.core_rig import CoreRig

PROMPT = own_tokens(1, 100)


class Shortage:
    """Nine requests and y(100, ., 50), which is retracted with 7 outputs while its 8th token is in flight."""

    def __init__(self, **params: Any) -> None:
        self.rig = CoreRig(
            pages=229, page_size=1, slots=12, init_new_token_ratio=0.01, prefill_max_requests=1,
            chunked_prefill_size=-1, max_queued_requests=9,
        )  # fmt: skip
        for number in range(9):
            self.rig.submit([number + 1, 2], params=steady(100))
        for _ in range(12):
            self.rig.step()
        self.rid = self.rig.submit(PROMPT, params=greedy(50, **params))
        (self.y,) = self.rig.scheduler._table.choices(self.rid)
        self.entered = self.y.qseq
        while not self.y.timeline.retractions:
            self.rig.now += 1.0
            assert self.rig.step()
        assert (len(self.y.output_ids), self.y.in_flight, self.y.state) == (7, 1, RequestState.WAITING)

    def resumed(self) -> list[list[int]]:
        """Run to the end; return the ids with which y enters again."""
        found = []
        while self.rig.steps:
            step = self.rig.steps[0]
            found += [unpack_ids(enter.ids) for enter in step.enter if unpack_ids(enter.ids)[:100] == PROMPT]
            self.rig.step()
        return found


def test_d9_the_token_in_flight_is_kept() -> None:
    """D9, RET-8, RET-10: O becomes 8, one token is streamed, and a prompt of 108 is computed for the 9th."""
    short = Shortage()
    assert len(short.rig.outputs(short.rid)) == 7
    short.rig.step()
    assert len(short.y.output_ids) == 8 and len(short.rig.outputs(short.rid)) == 8
    assert short.y.state is RequestState.WAITING
    entered = short.resumed()
    whole = oracle(PROMPT, 50, eos=-1)
    assert entered == [PROMPT + whole[:8]]
    assert short.rig.outputs(short.rid) == whole


def test_d9_the_token_in_flight_may_be_the_last() -> None:
    """D9, RET-10: finished out of the queue, and never admitted again."""
    eighth = oracle(PROMPT, 8, eos=-1)[7]
    # The same token came up before: below min_new_tokens it is none that stops.
    short = Shortage(stop_token_ids=(eighth,), min_new_tokens=7)
    short.rig.step()
    assert short.rig.streams[short.rid, 0].ending == "stop"
    assert short.y not in short.rig.scheduler._queue.waiting
    assert short.resumed() == [] and len(short.rig.outputs(short.rid)) == 8


def test_ret10_a_waiting_request_is_not_admitted_before_its_token_is_back() -> None:
    """RET-10: the pass stops at it and says why."""
    short = Shortage()
    queue = short.rig.scheduler._queue
    prefill = short.rig.scheduler._prefill
    assert prefill._reason_to_stop(short.y, FullPurse(), None, 0) == "token_in_flight"  # type: ignore[arg-type]
    short.rig.step()
    assert short.y.in_flight == 0 and short.y in queue.waiting


class FullPurse:
    """A budget that never ends."""

    def verdict(self) -> None:
        return None


def test_ret10_rows_of_an_earlier_incarnation_drop_out() -> None:
    """RET-10: a rid that is used again while a row of the first is in flight gets its own tokens only."""
    rig = CoreRig()
    rid = rig.submit([5, 6, 7], params=greedy(20), name=77)
    for _ in range(3):
        rig.step()
    rig.send(Abort(rid))
    assert len(rig.steps) == 2
    rig.submit([8, 9, 10], params=greedy(6), name=77)
    rig.run()
    assert rig.outputs(rid) == oracle([8, 9, 10], 6, eos=-1)
    assert rig.scheduler.snapshot()[1]["wasted_rows"] == 2


def test_ret6_what_a_retraction_keeps_and_clears() -> None:
    """RET-6: outputs, first-token time, cached tokens and what was streamed stay; everything about KV goes."""
    short = Shortage()
    y: Request = short.y
    assert (y.timeline.retractions, y.timeline.cached_tokens, len(y.output_ids)) == (1, 0, 7)
    assert y.stream.first_token_s >= 0 and y.stream.is_open
    assert (y.lease.pages, y.lease.protected, y.lease.num_computed_tokens, y.lease.node, y.slot) == ([], 0, 0, None, -1)
    short.rig.run()
    end = short.rig.streams[short.rid, 0].end
    assert end is not None and end.timings.retractions == 1


def test_ret6_cached_tokens_are_those_of_the_first_admission() -> None:
    """RET-6: what comes from the cache when a request resumes is its own, not what the client was saved."""
    rig = CoreRig(pages=200, page_size=4, slots=4, test_retract=True)
    rids = [rig.submit(own_tokens(number, 16), params=steady(20)) for number in range(3)]
    rig.run()
    again = [events(rig, rid, "admitted")[1:] for rid in rids]
    assert any(event["cached_tokens"] >= 16 for resumed in again for event in resumed)
    ends = [rig.streams[rid, 0].end for rid in rids]
    assert [end.timings.cached_tokens for end in ends if end is not None] == [0, 0, 0]


def test_ret7_to_the_tail_and_exempt_from_the_queue_limit() -> None:
    """RET-7: with a new qseq and the old seq; it takes no place in the queue and no request can displace it."""
    short = Shortage()
    assert short.y.qseq > short.entered == short.y.seq
    others = [short.rig.submit([60 + number, 2], 4) for number in range(10)]
    refused = [rid for rid in others if short.rig.streams[rid, 0].ending]
    # The limit is 9, and y is not one of them.
    assert refused == others[9:]
    assert short.rig.scheduler._queue.waiting[0] is short.y
    short.rig.run()
    assert short.rig.streams[short.rid, 0].ending == "length"


@pytest.mark.parametrize("values", [{}, {"schedule_low_priority_values_first": True}])
def test_ret7_priority_does_not_displace_a_retracted_request(values: dict[str, bool]) -> None:
    """RET-7, PRI-4."""
    rig = CoreRig(
        pages=60, slots=3, max_queued_requests=1, enable_priority_scheduling=True, test_retract=True, **values
    )  # type: ignore[arg-type]  # fmt: skip
    queue = rig.scheduler._queue
    rids = []
    for number in range(3):
        rids.append(rig.submit([number + 1, 2], params=steady(30), priority=0))
        rig.step()
    while not any(waiting.timeline.retractions for waiting in queue.waiting):
        rig.step()
    # The one place in the queue is free for each of them in turn; the more urgent displaces the newcomer before it.
    newcomers = [rig.submit([9, number], 3, priority=number if not values else -number) for number in (1, 2)]
    assert [rig.streams[rid, 0].ending for rid in newcomers] == ["queue_full", None]
    rig.run()
    assert [len(rig.outputs(rid)) for rid in rids] == [30] * 3


def test_ret14_an_abort_of_a_retracted_request() -> None:
    """RET-14: its output so far has been delivered; nothing of it is left, and its late token falls through."""
    short = Shortage()
    short.rig.send(Abort(short.rid))
    short.rig.streams[short.rid, 0].ending = "aborted"
    assert short.rig.outputs(short.rid) == oracle(PROMPT, 7, eos=-1)
    assert Rid(short.rid) not in short.rig.scheduler._table._by_rid
    assert short.resumed() == []
    assert short.rig.scheduler.is_idle()


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("config", [{}, {"enable_mixed_chunk": True}, {"step_order": "decode_first"}])
def test_ret16_forced_retractions_change_no_output(page_size: int, config: dict[str, Any]) -> None:
    """RET-16, STEP-13: every third step retracts; prompts are refused above a batch size."""

    def outputs(**more: Any) -> tuple[list[list[int]], float]:
        rig = CoreRig(pages=256 // page_size, page_size=page_size, **config, **more)
        rids = [rig.submit([*range(1, 9), number + 1], params=steady(12)) for number in range(6)]
        rig.run()
        return [rig.outputs(rid) for rid in rids], rig.scheduler.snapshot()[1]["retractions"]

    plain, none = outputs()
    forced, retractions = outputs(test_retract=True, test_retract_no_prefill_bs=3)
    assert forced == plain and none == 0 and retractions > 3


def test_ret16_no_prefill_above_a_batch_size() -> None:
    """RET-16."""
    rig = CoreRig(test_retract_no_prefill_bs=2, prefill_max_requests=1)
    for number in range(6):
        rig.submit([number + 1, 2], params=greedy(9))
    most = 0
    while rig.steps:
        most = max(most, len(rig.scheduler._batch.running))
        rig.step()
    assert most == 3


def test_ret11_the_chunked_request_is_no_victim() -> None:
    """RET-11: nor is a request that waits or has finished: the choice is among the rows alone."""
    rig = CoreRig(pages=40, page_size=4, slots=4, chunked_prefill_size=8, enable_mixed_chunk=True)
    for i in range(2):
        rig.submit([i + 1] * 4, params=greedy(100))
        rig.step()
    chunked = rig.submit([5] * 100, params=greedy(3))
    while rig.scheduler._batch.chunked is None:
        rig.step()
    while rig.scheduler._batch.chunked is not None:
        request = rig.scheduler._batch.chunked
        assert request.rid == chunked and request.timeline.retractions == 0
        assert request not in rig.scheduler._batch.rows()
        rig.step()
    rig.run()
    assert len(rig.outputs(chunked)) == 3


def test_ret12_mixed_rows_sit_out_what_does_not_fit() -> None:
    """RET-12: the chunk runs, the rows wait; no retraction, no decay."""
    bench = Bench(pages=100, page_size=4, chunked_prefill_size=16, enable_mixed_chunk=True, init_new_token_ratio=0.05)
    for number in range(4):
        bench.run(str(number), 8, 1, 20)
    bench.wait("prompt", 11, 0, 1)
    bench.leave_available(24)
    before = bench.ratio.current
    assert bench.prefill.may_begin(0.0)
    work = bench.scheduler._form_mixed(0.0)
    assert work is not None
    bench.scheduler._issue(work, 0.0)
    (frame,) = [frame for _, frame in bench.delivery.take() if type(frame).__name__ == "Step"]
    assert [chunk.length for chunk in frame.chunks] == [11] and not frame.decode  # type: ignore[attr-defined]
    assert bench.counters.retractions == 0 and bench.ratio.current == before
