"""What the scheduler keeps of requests that have ended: facts within a bound, no output and no log-probabilities."""

import gc
from typing import Any

import msgspec
import pytest

from quartet.wire.frames import LiveRequest, LiveRequests, Open, SamplingParams, TokenLogprobs
from quartet.wire.ids import Rid
from scheduler_proc.core import history, timeline
from scheduler_proc.core.naming import RequestName
from scheduler_proc.core.request import Request
from tests.support.core_rig import CoreRig

WITH_LOGPROBS = SamplingParams(max_new_tokens=40, ignore_eos=True, logprobs=2)


def requests_in_memory() -> int:
    gc.collect()
    return sum(type(one) is Request for one in gc.get_objects())


def logprobs_in_memory() -> int:
    gc.collect()
    return sum(type(one) is TokenLogprobs for one in gc.get_objects())


def chatty_rig() -> CoreRig:
    """A rig whose worker adds log-probabilities to every row, and whose clients keep none."""
    rig = CoreRig()
    assert rig.worker is not None
    run = rig.worker.run

    def run_with_logprobs(step: Any) -> Any:
        result = run(step)
        rows = range(len(result.ids) // 4)
        return msgspec.structs.replace(result, logprobs=[(row, TokenLogprobs(-1.0, ((1, -1.0),))) for row in rows])

    rig.worker.run = run_with_logprobs  # type: ignore[method-assign]
    return rig


def forget_received(rig: CoreRig) -> None:
    for stream in rig.streams.values():
        stream.logprobs.clear()


def test_an_ended_request_leaves_nothing_but_facts() -> None:
    before = requests_in_memory(), logprobs_in_memory()
    rig = chatty_rig()
    for name in range(50):
        rig.submit([1, 2, 3 + name], params=WITH_LOGPROBS, name=name, deadline_s=1e6)
    rig.run()
    forget_received(rig)
    assert (requests_in_memory(), logprobs_in_memory()) == before
    assert len(rig.scheduler._table.ended.facts()) == 50


def test_facts_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_KEPT", 10)
    rig = CoreRig()
    rids = [rig.submit([1, 2, 3], 3, name=name) for name in range(30)]
    rig.run()
    ended = rig.scheduler._table.ended
    assert {facts.rid for facts in ended.facts()} <= set(rids) and len(ended.facts()) == 10
    monkeypatch.setattr(history, "MAX_BYTES", 1000)
    rig.submit([1, 2, 3], 3, name=99)
    rig.run()
    assert 0 < sum(len(one[-1]) for one in ended._records) <= 1000
    assert [facts.rid for facts in ended.facts(RequestName(Rid((99).to_bytes(16, "big")).hex(), None))]


def test_a_long_history_loses_its_middle() -> None:
    times = timeline.Timeline(0.0, None)
    for number in range(10_000):
        times.note(float(number), "retracted", {})
    assert len(times.events) == timeline.MOST_EVENTS
    assert times.events[0][0] == 0.0 and times.events[-1][0] == 9999.0


def test_logprobs_are_kept_until_they_are_delivered() -> None:
    rig = chatty_rig()
    rid = rig.submit([1, 2, 3], params=WITH_LOGPROBS)
    opens: list[Open] = []
    rig.watch(lambda frame: opens.append(frame) if isinstance(frame, Open) else None)
    while len(rig.outputs(rid)) < 20:
        rig.step()
    request = rig.scheduler._table.find(rid, 0)
    assert request is not None and len(request.stream.logprobs) == len(request.output_ids)
    rig.send(LiveRequests("api-0", [LiveRequest(rid, 0, 0, 12)]))
    assert len(request.stream.logprobs) == len(request.output_ids) - 12
    # A replay with what was delivered is rebound and gets the rest.
    replay(rig, rid, 14)
    assert rig.scheduler._table.find(rid, 0) is request
    assert len(opens[-1].logprobs) == len(request.output_ids) - 14
    # One that lacks what was said to be delivered cannot be: it is computed again.
    replay(rig, rid, 5)
    again = rig.scheduler._table.find(rid, 0)
    assert again is not None and again is not request and len(again.output_ids) == 5


def replay(rig: CoreRig, rid: Rid, count: int) -> None:
    """Submit a request again with the first `count` outputs."""
    stream = rig.streams[rid, 0]
    del stream.outputs[count:]
    rig.resubmit(rid)


def test_cached_tokens_of_a_replay_are_those_of_its_prompt() -> None:
    rig = CoreRig(page_size=4)
    rid = rig.submit(list(range(1, 11)), params=SamplingParams(max_new_tokens=40, ignore_eos=True))
    while len(rig.outputs(rid)) < 20:
        rig.step()
    rig.run()
    # All of it has ended here, and its end was lost with the detokenizer.
    rig.streams[rid, 0].ending = None
    replay(rig, rid, 16)
    rig.run()
    facts = rig.scheduler._table.ended.facts(RequestName(rid.hex(), None))[-1]
    assert facts.attempt == 1 and 0 < facts.cached_tokens <= facts.prompt_tokens == 10
