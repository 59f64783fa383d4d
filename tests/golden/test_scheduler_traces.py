"""The scheduler core gives the recorded frames for the recorded events, and twice the same."""

from pathlib import Path

import pytest

from scheduler_proc.core.scheduler import Scheduler
from tests.golden.scheduler_traces import Trace, differences, files, read, replay


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_the_same_events_give_the_recorded_frames_byte_for_byte(path: Path) -> None:
    traces = read(path)
    assert len(traces) > 100
    found = [words for trace in traces for words in differences(trace, replay(trace))]
    assert not found, f"{len(found)} differences, the first: {found[0]}"


def test_the_same_events_give_the_same_frames_twice() -> None:
    traces = read(files()[0])[::10]
    assert [replay(trace) for trace in traces] == [replay(trace) for trace in traces]


def test_a_change_of_behaviour_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = max(read(files()[0]), key=lambda trace: len(trace.reactions))
    handle = Scheduler.handle
    monkeypatch.setattr(Scheduler, "handle", lambda scheduler, event, now: handle(scheduler, event, now)[:-1])
    (first, *_) = differences(trace, replay(trace))
    assert trace.name in first and "sent before" in first


def test_the_traces_cover_every_kind_of_event_and_frame() -> None:
    events, frames = set[object](), set[object]()
    for path in files():
        for trace in read(path):
            _collect(trace, events, frames)
    assert len(events) == 11, events
    assert len(frames) == 9, frames


def _collect(trace: Trace, events: set[object], frames: set[object]) -> None:
    import msgspec

    for reaction in trace.reactions:
        events.add(msgspec.msgpack.decode(reaction.event)[0])
        frames.update(msgspec.msgpack.decode(body)[0] for _, body in reaction.sent)
