"""An exception while one stream is decoded fails that stream alone."""

import pytest
from detok_rig import Rig, end_of, rid_of

from detok_proc.incremental import DecoderFactory
from detok_proc.stream import Stream
from quartet.wire.frames import pack_ids

POISON = 13


@pytest.fixture
def rig(byte_level: DecoderFactory, monkeypatch: pytest.MonkeyPatch) -> Rig:
    push = Stream.push

    def push_or_fail(stream: Stream, token: int) -> str:
        if token == POISON:
            raise ZeroDivisionError("secret text")
        return push(stream, token)

    monkeypatch.setattr(Stream, "push", push_or_fail)
    return Rig(byte_level)


def check_only_the_first_failed(rig: Rig, count: int) -> None:
    assert rig.failed.keys() == {rid_of(1)}
    failed = rig.failed[rid_of(1)]
    assert (failed.status, failed.code, failed.attempt) == (500, "internal_error", 1)
    assert len(rig.heard[rid_of(2)].ids) == count
    assert rig.core.counters["detok_failed_streams"] == 1


def test_a_row(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.open(1), rig.open(2)
    rig.tokens([(1, 0, 5), (2, 0, 5)])
    rig.tokens([(1, 1, POISON), (2, 1, 6)])
    rig.tokens([(1, 2, 5), (2, 2, 7)])
    check_only_the_first_failed(rig, 3)
    assert rig.core.counters["detok_late_rows"] == 1
    assert "secret" not in caplog.text


def test_the_last_row(rig: Rig) -> None:
    rig.open(1), rig.open(2)
    rig.tokens([(1, 0, POISON), (2, 0, 5)], [end_of(1), end_of(1, handle=2)])
    check_only_the_first_failed(rig, 1)
    assert rig.heard[rid_of(2)].finish is not None


def test_a_replay(rig: Rig) -> None:
    rig.open(1, output_ids=pack_ids([5, POISON]))
    rig.open(2)
    rig.tokens([(1, 2, 5), (2, 0, 5)])
    check_only_the_first_failed(rig, 1)
