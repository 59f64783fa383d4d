"""What can be seen of scheduling: timeouts and streaming 6.5, metrics MET-1 to MET-4, timelines."""

import itertools
from typing import Any

import pytest
from factory import ask, events, greedy, own_tokens, steady, timeline

from quartet.wire.frames import Abort, Tokens, unpack_ids
from scheduler_proc.core.events import Tick
from tests.support.core_rig import CoreRig


def pass_time(rig: CoreRig, seconds: float) -> None:
    rig.now += seconds
    rig.send(Tick())


def test_6_5_only_a_waiting_request_has_waited_too_long() -> None:
    """6.5: 408 after req_waiting_timeout; running requests are left alone."""
    rig = CoreRig(slots=1, req_waiting_timeout=5.0)
    runs, waits = rig.submit([1, 2], params=greedy(40)), rig.submit([1, 3], params=greedy(40))
    rig.step()
    assert rig.scheduler.next_deadline() == 5.0
    pass_time(rig, 4.9)
    assert rig.streams[waits, 0].ending is None
    pass_time(rig, 0.1)
    assert rig.streams[waits, 0].ending == "deadline_exceeded" and rig.streams[runs, 0].ending is None
    rig.run()
    assert len(rig.outputs(runs)) == 40


@pytest.mark.parametrize("interval", [1, 8])
def test_6_5_a_request_that_runs_too_long_keeps_its_output(interval: int) -> None:
    """6.5: from admission on; what an interval has held back is sent before the end."""
    rig = CoreRig(req_running_timeout=5.0, stream_interval=interval)
    rig.now = 3.0
    rid = rig.submit([1, 2], params=greedy(40))
    for _ in range(5):
        rig.step()
    pass_time(rig, 4.9)
    assert rig.streams[rid, 0].ending is None
    pass_time(rig, 0.2)
    assert rig.streams[rid, 0].ending == "deadline_exceeded" and len(rig.outputs(rid)) == 5
    rig.run()
    assert rig.scheduler.is_idle()


def test_6_5_timeouts_are_off_at_zero_and_below() -> None:
    """6.5."""
    rig = CoreRig(slots=1, req_waiting_timeout=0.0, req_running_timeout=-1.0)
    rids = [rig.submit([1, number], params=greedy(4)) for number in (2, 3)]
    assert rig.scheduler.next_deadline() is None
    pass_time(rig, 1e9)
    rig.run()
    assert [rig.streams[rid, 0].ending for rid in rids] == ["length"] * 2


def test_6_5_a_retracted_requests_wait_starts_again() -> None:
    """6.5: the clock of a request that is queued again restarts."""
    rig = CoreRig(pages=64, slots=4, req_waiting_timeout=5.0, test_retract=True)
    rids = [rig.submit([number + 1, 2], params=steady(30)) for number in range(3)]
    rig.now = 4.0
    queue = rig.scheduler._queue
    while not any(waiting.timeline.retractions for waiting in queue.waiting):
        rig.step()
    victim = next(waiting for waiting in queue.waiting if waiting.timeline.retractions)
    assert victim.timeline.arrived_s == 0.0 and victim.timeline.queued_s == 4.0
    pass_time(rig, 4.9)
    assert all(rig.streams[rid, 0].ending is None for rid in rids)


def test_6_5_the_wait_starts_again_when_the_worker_is_lost() -> None:
    """6.5: a request that ran for longer than others may wait is not failed because its worker dies."""
    rig = CoreRig(req_waiting_timeout=2.0)
    rid = rig.submit([1, 2], params=greedy(20))
    rig.step()
    rig.now = 4.0
    rig.worker_lost()
    pass_time(rig, 1.9)
    assert rig.streams[rid, 0].ending is None
    pass_time(rig, 0.2)
    assert rig.streams[rid, 0].ending == "deadline_exceeded"


def test_6_5_only_time_in_the_batch_counts_as_running() -> None:
    """6.5: what a request has waited between two stays in the batch does not count; the stays add up."""
    rig = CoreRig(req_running_timeout=5.0)
    rid = rig.submit([1, 2], params=greedy(60))
    rig.step()
    rig.now = 3.0
    rig.worker_lost()
    rig.now = 20.0
    rig.worker_up()
    rig.step()
    pass_time(rig, 1.9)
    assert rig.streams[rid, 0].ending is None
    pass_time(rig, 0.2)
    assert rig.streams[rid, 0].ending == "deadline_exceeded"


@pytest.mark.parametrize("interval", [1, 3, 50])
def test_6_5_the_stream_is_flushed_every_so_many_tokens_and_at_the_end(interval: int) -> None:
    """6.5."""
    rig = CoreRig(stream_interval=interval)
    sizes = []

    def watch(frame: Any) -> None:
        if isinstance(frame, Tokens) and frame.ids:
            sizes.append(len(unpack_ids(frame.ids)))

    rig.watch(watch)
    rid = rig.submit([1, 2], params=greedy(11))
    rig.run()
    assert len(rig.outputs(rid)) == 11
    assert sizes == [interval] * (11 // interval) + ([11 % interval] if 11 % interval else [])


# Metrics


def test_met1_the_state_of_the_engine() -> None:
    """MET-1: queue, batch, ratio, tokens available, evictable, protected; hits and inputs."""
    rig = CoreRig(pages=64, page_size=4, slots=1)
    first = rig.submit(own_tokens(1, 12), params=greedy(3))
    rig.run()
    assert rig.streams[first, 0].ending == "length"
    rig.submit(own_tokens(1, 14), params=greedy(9))
    rig.submit([7, 7], params=greedy(9))
    gauges, counters = rig.scheduler.snapshot()
    assert (gauges["num_running_reqs"], gauges["num_queue_reqs"]) == (1, 1)
    assert 0 < gauges["new_token_ratio"] < 0.7
    tokens = {name: gauges[f"kv_{name}_tokens"] for name in ("capacity", "available", "evictable", "protected")}
    # 12 tokens are locked in the tree; 2 more of the prompt and the next rows have one private page.
    assert tokens == {"capacity": 256, "available": 240, "evictable": 0, "protected": 12}
    assert (counters["cached_tokens"], counters["input_tokens"]) == (12, 12 + 14)


def test_met1_recomputed_prompts_are_counted_apart() -> None:
    """MET-1, MET-2: hits and inputs count first admissions only."""
    rig = CoreRig(pages=64, page_size=4, slots=4, test_retract=True)
    for number in range(3):
        rig.submit(own_tokens(number, 8), params=steady(20))
    rig.run()
    _, counters = rig.scheduler.snapshot()
    assert (counters["input_tokens"], counters["cached_tokens"]) == (24, 0)
    assert counters["recomputed_tokens"] > 0
    assert counters["retractions"] > 3
    assert counters["retracted_input_tokens"] == 8 * counters["retractions"]
    assert counters["retracted_output_tokens"] > 0


def test_met2_preemptions_and_ends_by_cause() -> None:
    """MET-2."""
    rig = CoreRig(slots=1, enable_priority_scheduling=True, max_queued_requests=1)
    rig.submit([1, 2], params=greedy(30), priority=0)
    rig.step()
    rig.submit([1, 3], params=greedy(3), priority=50)
    rig.step()
    gone = rig.submit([1, 4], params=greedy(3), priority=0)
    rig.submit([1, 5], params=greedy(3), priority=-1)
    rig.send(Abort(gone))
    rig.streams[gone, 0].ending = "aborted"
    rig.run()
    _, counters = rig.scheduler.snapshot()
    assert counters["preemptions"] == 1
    causes = {
        cause: counters.get(f'requests_ended{{cause="{cause}"}}') for cause in ("aborted", "length", "queue_full")
    }
    assert causes == {"aborted": 1, "length": 2, "queue_full": 1}


def test_met3_each_request_knows_its_own_cost() -> None:
    """MET-3, PR-19: retractions, recomputed tokens, passes waited."""
    rig = CoreRig(pages=64, page_size=4, slots=4, test_retract=True, prefill_max_requests=1)
    rids = [rig.submit(own_tokens(number, 8), params=steady(20)) for number in range(3)]
    rig.run()
    lines = [timeline(rig, rid) for rid in rids]
    assert sum(line["retractions"] for line in lines) == rig.scheduler.snapshot()[1]["retractions"]
    assert all((line["recomputed_tokens"] > 0) == (line["retractions"] > 0) for line in lines)
    assert [events(rig, rid, "admitted")[0]["passes_waited"] for rid in rids] == [0, 0, 1]


def test_met4_steps_and_the_longest_gap() -> None:
    """MET-4: between decode steps while requests run."""
    rig = CoreRig(pages=200, page_size=4, chunked_prefill_size=8)
    rig.submit([1, 2], params=greedy(30))
    for _ in range(5):
        rig.now += 1.0
        rig.step()
    rig.submit(own_tokens(3, 32), params=greedy(1))
    for _ in range(10):
        rig.now += 1.0
        rig.step()
    rig.run()
    gauges, counters = rig.scheduler.snapshot()
    assert (counters["prefill_steps"], counters["decode_steps"]) == (1 + 4, 29)
    assert gauges["longest_decode_gap_s"] == 5.0


# Timelines


def test_timeline_of_a_request_that_waits_runs_and_ends() -> None:
    """MET-3: queued at a place, passed over for reasons, admitted with a reservation, chunks, first token, end."""
    rig = CoreRig(pages=64, page_size=4, slots=1, chunked_prefill_size=8)
    rig.submit([1, 2], params=greedy(6))
    rid = rig.submit(own_tokens(2, 20), params=greedy(5))
    while rig.steps:
        rig.now += 1.0
        rig.step()
    line = timeline(rig, rid)
    assert [event["event"] for event in line["events"]] == [
        "queued", "admitted", "chunk", "chunk", "chunk", "first_token", "ended"
    ]  # fmt: skip
    admitted = events(rig, rid, "admitted")[0]
    assert (admitted["cached_tokens"], admitted["first_chunk_tokens"], admitted["reserved_tokens"]) == (0, 8, 5)
    assert admitted["ratio"] == pytest.approx(0.7 - 5 * 0.602 / 600, abs=1e-5)
    assert admitted["waited_s"] == admitted["at_s"] > 0
    assert set(admitted["passed_over"]) == {"no_slot"}
    chunks = [(event["tokens"], event["is_last"]) for event in events(rig, rid, "chunk")]
    assert chunks == [(8, False), (8, False), (4, True)]
    assert events(rig, rid, "ended")[0] | {"at_s": 0} == {
        "at_s": 0, "event": "ended", "cause": "length", "outputs": 5
    }  # fmt: skip
    assert (line["state"], line["prompt_tokens"], line["output_tokens"], line["max_new_tokens"]) == (
        "finished",
        20,
        5,
        5,
    )


def test_timeline_of_a_retraction_names_the_shortage() -> None:
    """RET-2, MET-2: how many tokens were missing, and with how many outputs it happened."""
    rig = CoreRig(pages=16, page_size=4, slots=8, init_new_token_ratio=0.1)
    rids = [rig.submit([number + 1] * 9, 30) for number in range(8)]
    rig.run()
    found = [event for rid in rids for event in events(rig, rid, "retracted")]
    assert len(found) == rig.scheduler.snapshot()[1]["retractions"] > 0
    assert all(event["shortage_tokens"] > 0 and event["shortage_tokens"] % 4 == 0 for event in found)
    assert all(0 < event["outputs"] < 30 for event in found)


def test_timeline_of_a_preemption_names_the_request_that_caused_it() -> None:
    """PRE-6."""
    rig = CoreRig(slots=1, enable_priority_scheduling=True)
    victim = rig.submit([1, 2], params=greedy(30), priority=0)
    rig.step()
    urgent = rig.submit([1, 3], params=greedy(3), priority=50)
    rig.run()
    (event,) = events(rig, victim, "preempted")
    assert event["by"] == urgent.hex()
    assert [event["event"] for event in timeline(rig, victim)["events"]].count("queued") == 2


def test_timeline_of_a_stranger() -> None:
    """An unknown id says so, and an unknown question too."""
    rig = CoreRig()
    assert "is live or among the last" in ask(rig.scheduler, "timeline", "ab" * 16)["error"]
    assert "unknown question" in ask(rig.scheduler, "weather")["error"]


def test_trace_has_a_row_for_each_request() -> None:
    """In Chrome's format: spans follow each other without gaps, in microseconds."""
    rig = CoreRig()
    for number in range(3):
        rig.submit([number + 1, 2], params=greedy(4))
    while rig.steps:
        rig.now += 0.5
        rig.step()
    trace = ask(rig.scheduler, "trace", now=rig.now)["traceEvents"]
    assert sum(event["ph"] == "M" for event in trace) == 3
    spans = [event for event in trace if event["ph"] == "X" and event["tid"] == 0]
    assert spans[0]["name"] == "queued" and spans[-1]["name"] == "ended"
    for one, following in itertools.pairwise(spans):
        assert one["ts"] + one["dur"] == pytest.approx(following["ts"])
