"""The detokenizer's core: batching, replay, stop strings, endings, epochs."""

import itertools

import pytest
from detok_rig import TIMINGS, Heard, Rig, end_of, rid_of
from hypothesis import given, settings
from hypothesis import strategies as st

from detok_proc.incremental import DecoderFactory
from quartet.wire.codec import Source
from quartet.wire.errors import FrameError
from quartet.wire.frames import Finish, Timings, TokenLogprobs, Tokens, pack_ids, unpack_ids
from quartet.wire.ids import Epoch, Role

ALPHABET = "abé😀"


def ids_of(factory: DecoderFactory, text: str) -> list[int]:
    """Return one id for each byte of `text`: the hardest way to cut it."""
    by_bytes = {}
    for index in range(256):
        by_bytes[factory.token_text(index)[1]] = index
    return [by_bytes[bytes([byte])] for byte in text.encode()]


def run_split(factory: DecoderFactory, ids: list[int], cuts: list[int], stop: tuple[str, ...], include: bool) -> Rig:
    """Send `ids` in frames cut at `cuts`, each row of a frame for the same stream, then the end."""
    rig = Rig(factory)
    rig.open(stop=stop, include_stop_in_output=include)
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < len(ids)}), len(ids)]
    for start, end in itertools.pairwise(bounds):
        ends = [end_of(len(ids))] if end == len(ids) else []
        rig.tokens([(1, index, ids[index]) for index in range(start, end)], ends)
    return rig


def expected_output(text: str, stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """Find the stop string that ends first, the slow and obvious way."""
    for end in range(1, len(text) + 1):
        for each in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(each):
                return text[: end if include else end - len(each)], each
    return text, None


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(ALPHABET, min_size=1, max_size=12),
    stop=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3).map(tuple),
    include=st.booleans(),
    cuts=st.lists(st.integers(1, 40), max_size=6),
)
def test_every_split_into_frames_gives_the_text_up_to_the_first_stop(
    byte_level: DecoderFactory, text: str, stop: tuple[str, ...], include: bool, cuts: list[int]
) -> None:
    rig = run_split(byte_level, ids_of(byte_level, text), cuts, stop, include)
    heard = rig.heard[rid_of(1)]
    shown, matched = expected_output(text, stop, include)
    assert heard.text == shown
    assert heard.finish is not None
    assert heard.finish.matched == matched
    assert heard.finish.reason == ("length" if matched is None else "stop")
    assert heard.finish.count == len(heard.ids)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), text=st.text(ALPHABET, min_size=1, max_size=10), stop=st.text(ALPHABET, min_size=1, max_size=3))
def test_replay_at_every_point_gives_the_same_rest(
    byte_level: DecoderFactory, data: st.DataObject, text: str, stop: str
) -> None:
    ids = ids_of(byte_level, text)
    whole = run_split(byte_level, ids, list(range(len(ids))), (stop,), False).heard[rid_of(1)]
    # The last id and the finish come in one item, so that they are delivered together.
    delivered = data.draw(st.integers(0, len(whole.ids) - 1))
    known = data.draw(st.integers(delivered, len(whole.ids)))
    offset = sum(len(item.text) for item in whole.items if item.index < delivered)
    rig = Rig(byte_level)
    heard = rig.heard[rid_of(1)] = type(whole)(ids[:delivered], whole.text[:offset])
    rig.open(stop=(stop,), output_ids=pack_ids(ids[:known]), delivered_count=delivered, attempt=2)
    if heard.finish is None:
        rest = [(1, index, ids[index]) for index in range(known, len(ids))]
        rig.tokens(rest, [end_of(len(ids))])
    assert (heard.text, heard.ids) == (whole.text, whole.ids)
    assert heard.finish is not None and whole.finish is not None
    assert (heard.finish.reason, heard.finish.matched) == (whole.finish.reason, whole.finish.matched)


def test_a_stop_string_in_replayed_ids_ends_at_once(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    ids = ids_of(byte_level, "abXcd")
    heard = rig.open(stop=("X",), output_ids=pack_ids(ids), delivered_count=0)
    assert (heard.text, heard.ids) == ("ab", ids[:3])
    assert heard.finish == Finish("stop", "X", 3, heard.finish.timings)
    assert [stopped.count for stopped in rig.stopped] == [3]
    rig.tokens([(1, 5, ids[0])])
    assert rig.core.counters["detok_late_rows"] == 1


def test_ids_of_held_text_are_delivered_at_once(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open(stop=("abc",))
    a, b = ids_of(byte_level, "ab")
    rig.tokens([(1, 0, a)])
    rig.tokens([(1, 1, b)])
    assert (heard.ids, heard.text) == ([a, b], "")
    rig.tokens([(1, 2, b)])
    assert (heard.text, heard.items[-1].offset) == ("abb", 0)


def test_a_stop_is_sent_to_the_scheduler_and_later_rows_are_ignored(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open(stop=("b",))
    a, b = ids_of(byte_level, "ab")
    rig.tokens([(1, 0, a), (1, 1, b), (1, 2, a)])
    assert (heard.text, heard.ids) == ("a", [a, b])
    assert (rig.stopped[0].count, rig.stopped[0].rid) == (2, rid_of(1))
    rig.tokens([], [end_of(3)])
    rig.tokens([(1, 3, a)])
    assert rig.core.counters["detok_late_rows"] == 1
    assert rig.core.counters["detok_unknown_handles"] == 1, "after its end the handle is forgotten"


def test_a_stop_string_ends_the_times_that_were_known_at_open(byte_level: DecoderFactory) -> None:
    a, b = ids_of(byte_level, "ab")
    known = Timings(5, 0.25, 0.0, 0.0, 1, 99)
    for first, waits in (([a], 0.5), ([], 0.0)):
        rig = Rig(byte_level)
        rig.now = 100.0
        heard = rig.open(stop=("b",), timings=known)
        rig.now = 102.0
        for index, token in enumerate([*first, b]):
            rig.tokens([(1, index, token)])
            rig.now += waits
        assert heard.finish is not None
        assert heard.finish.timings == Timings(5, 0.25, 2.0, waits, 1, 99)


def test_a_reopened_stream_adds_to_the_times_of_its_prefill_and_decode(byte_level: DecoderFactory) -> None:
    a, b = ids_of(byte_level, "ab")
    cases = (
        (Timings(queue_s=0.25, prefill_s=1.0, decode_s=3.0), [a], Timings(queue_s=0.25, prefill_s=1.0, decode_s=5.0)),
        (Timings(queue_s=0.25, prefill_s=1.0), [], Timings(queue_s=0.25, prefill_s=3.0)),
        (Timings(queue_s=0.25, prefill_s=1.0, decode_s=3.0), [a, b], None),
    )
    for known, outputs, expected in cases:
        rig = Rig(byte_level)
        rig.now = 100.0
        heard = rig.heard[rid_of(1)] = Heard([a] if outputs else [], "a" if outputs else "")
        rig.open(stop=("b",), timings=known, output_ids=pack_ids(outputs), delivered_count=min(1, len(outputs)))
        rig.now = 102.0
        rig.tokens([(1, len(outputs), b)])
        assert heard.finish is not None
        assert heard.finish.timings == (expected or known)


def test_an_end_in_the_same_frame_as_a_stop_string_carries_the_string(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open(stop=("b",))
    rig.tokens([(1, 0, ids_of(byte_level, "b")[0])], [end_of(1)])
    assert heard.finish == Finish("stop", "b", 1, TIMINGS)
    assert rig.stopped == []


def test_an_end_inside_a_character_gives_one_replacement(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open()
    ids = ids_of(byte_level, "a😀")[:4]
    rig.tokens([(1, index, token) for index, token in enumerate(ids)])
    assert heard.text == "a"
    rig.tokens([], [end_of(4)])
    assert heard.text == "a\ufffd"


def test_held_text_is_shown_when_the_stream_ends(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open(stop=("ab!",))
    a, b = ids_of(byte_level, "ab")
    end_token = 256 + 7 + 1
    rig.tokens([(1, 0, a), (1, 1, b), (1, 2, end_token)], [end_of(3, reason="stop", hidden=1)])
    assert (heard.text, heard.ids) == ("ab", [a, b, end_token])
    assert heard.finish == Finish("stop", None, 3, TIMINGS)


def test_a_hidden_stop_token_gives_no_text_even_when_it_was_replayed(byte_level: DecoderFactory) -> None:
    a, b = ids_of(byte_level, "ab")
    end = end_of(2, reason="stop", matched=b, hidden=1)
    live = Rig(byte_level)
    heard = live.open()
    live.tokens([(1, 0, a), (1, 1, b)], [end])
    assert (heard.text, heard.finish.matched) == ("a", b)
    again = Rig(byte_level)
    again.heard[rid_of(1)] = type(heard)([a, b], "a")
    heard = again.open(output_ids=pack_ids([a, b]), delivered_count=2)
    again.tokens([], [end])
    assert (heard.text, heard.finish.matched) == ("a", b)


def test_duplicates_are_skipped_and_gaps_dropped(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open()
    a, b = ids_of(byte_level, "ab")
    rig.tokens([(1, 0, a)])
    rig.tokens([(1, 0, a), (1, 1, b)])
    rig.tokens([(1, 3, b)], [end_of(4)])
    assert (heard.text, heard.finish) == ("ab", None)
    assert rig.core.counters["detok_duplicate_rows"] == 1
    assert rig.core.counters["detok_gaps"] == 2
    assert rig.core.stream_count == 0


def test_one_delta_for_each_api_process(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    for handle in range(6):
        rig.open(handle, reply_to=f"api-{handle % 2}")
    rig.tokens([(handle, 0, ids_of(byte_level, "a")[0]) for handle in range(6)])
    assert [(to, len(delta.items)) for to, delta in rig.deltas] == [("api-0", 3), ("api-1", 3)]


def test_a_higher_epoch_drops_every_stream_and_a_lower_one_is_dropped(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open()
    row = [(1, 0, ids_of(byte_level, "a")[0])]
    rig.epoch = 3
    rig.tokens(row)
    assert (heard.ids, rig.core.counters["detok_unknown_handles"]) == ([], 1)
    rig.open(attempt=2)
    rig.epoch = 2
    with pytest.raises(FrameError, match="stale"):
        rig.tokens(row)
    assert heard.ids == []
    rig.epoch = 3
    rig.tokens(row)
    assert heard.text == "a"


def test_frames_of_others_are_dropped(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    rig.open()
    row = Tokens(0, pack_ids([1]), pack_ids([0]), pack_ids([5]), [], [])
    with pytest.raises(FrameError, match="stale"):
        rig.core.handle(Source(Role.API, 0, Epoch(9)), row, 0.0)


def test_a_closed_handle_is_forgotten(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open()
    rig.close()
    rig.tokens([(1, 0, 5)])
    assert (heard.ids, rig.core.stream_count) == ([], 0)


def test_logprobs_get_text_and_bytes(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    heard = rig.open(2)
    rig.open(1)
    half, a = ids_of(byte_level, "é")[0], ids_of(byte_level, "a")[0]
    rig.tokens([(1, 0, a), (2, 0, half)], logprobs=[(1, TokenLogprobs(-0.5, ((half, -0.5), (a, -2.0))))])
    item = heard.items[0]
    assert item.logprobs is not None
    assert (item.logprobs[0].token, item.logprobs[0].token_bytes) == (r"bytes:\xc3", b"\xc3")
    assert item.logprobs[0].top == ((r"bytes:\xc3", b"\xc3", -0.5), ("a", b"a", -2.0))
    assert rig.heard[rid_of(1)].items[0].logprobs is None


def test_every_item_carries_the_ids_of_its_row(byte_level: DecoderFactory) -> None:
    rig = Rig(byte_level)
    for handle in range(3):
        rig.open(handle)
    rig.tokens([(handle, 0, 70 + handle) for handle in range(3)])
    items = rig.deltas[0][1].items
    assert [(item.rid, unpack_ids(item.ids)) for item in items] == [(rid_of(h), [70 + h]) for h in range(3)]
