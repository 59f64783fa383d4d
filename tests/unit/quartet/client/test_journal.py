"""The journal: each token once and in order, whatever arrives twice, late, with a hole, or not at all."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_rig import OTHER, RID, JournalRig, item, submit, text_of

from quartet.client.journal import Gap, Journal
from quartet.wire.frames import Finish, LastEnd, LiveRequest, ProcessStatus, Submit, TextLogprobs, Timings
from quartet.wire.frames import unpack_ids as ids_of
from quartet.wire.ids import Epoch, Rid, Role


@pytest.fixture
def rig() -> JournalRig:
    return JournalRig()


def test_output_is_passed_on_as_it_comes(rig: JournalRig) -> None:
    first = item(0, [3, 5])
    assert rig.take(first) == first
    assert rig.take(item(2, [7], [3, 5])) is not None
    assert rig.ids == [3, 5, 7] and list(rig.entry.outputs) == [3, 5, 7]
    assert rig.entry.text_length == len(rig.text)


def test_output_that_was_delivered_is_trimmed(rig: JournalRig) -> None:
    rig.take(item(0, [3, 5, 6]))
    given = rig.take(item(1, [5, 6, 7, 9], [3]))
    assert given is not None
    assert (given.index, ids_of(given.ids)) == (3, [7, 9])
    assert given.offset == len("".join(map(text_of, [3, 5, 6])))
    assert rig.ids == [3, 5, 6, 7, 9] and rig.text == "".join(map(text_of, rig.ids))


def test_output_that_was_delivered_whole_is_empty(rig: JournalRig) -> None:
    rig.take(item(0, [3, 5, 6]))
    for again in (item(0, [3, 5, 6]), item(0, [3]), item(1, [5], [3])):
        given = rig.take(again)
        assert given is not None and (given.ids, given.text, given.index) == (b"", "", 3)
    assert list(rig.entry.outputs) == [3, 5, 6] and rig.journal.divergences == 0


def test_logprobs_are_trimmed_with_their_ids(rig: JournalRig) -> None:
    def logprobs(*values: float) -> list[TextLogprobs]:
        return [TextLogprobs("", b"", value, ()) for value in values]

    rig.take(item(0, [3, 5], logprobs=logprobs(-1, -2)))
    given = rig.take(item(1, [5, 6], [3], logprobs=logprobs(-2, -3)))
    assert given is not None and given.logprobs == logprobs(-3)


def test_text_held_back_comes_with_a_later_repeat(rig: JournalRig) -> None:
    rig.take(item(0, [3, 5], text="", offset=0))
    given = rig.take(item(0, [3, 5], text="held", offset=0))
    assert given is not None and (given.ids, given.text, rig.entry.text_length) == (b"", "held", 4)


def test_a_hole_is_a_gap_and_changes_nothing(rig: JournalRig) -> None:
    rig.take(item(0, [3]))
    with pytest.raises(Gap):
        rig.take(item(2, [7], [3, 5]))
    assert list(rig.entry.outputs) == [3] and rig.journal.divergences == 0
    assert rig.take(item(1, [5], [3])) is not None


def test_other_ids_than_delivered_are_a_divergence(rig: JournalRig) -> None:
    rig.take(item(0, [3, 5]))
    with pytest.raises(Gap):
        rig.take(item(1, [6, 7], [3]))
    assert rig.journal.divergences == 1 and list(rig.entry.outputs) == [3, 5]


def test_missing_text_is_a_divergence(rig: JournalRig) -> None:
    rig.take(item(0, [3]))
    with pytest.raises(Gap):
        rig.take(item(1, [5], [3], offset=rig.entry.text_length + 1))
    assert rig.journal.divergences == 1 and list(rig.entry.outputs) == [3]


def test_text_that_goes_back_without_its_ids_is_a_divergence(rig: JournalRig) -> None:
    rig.take(item(0, [3]))
    with pytest.raises(Gap):
        rig.take(item(1, [5], [3], offset=0))
    assert rig.journal.divergences == 1


@pytest.mark.parametrize("stale", [{"attempt": 1}, {"choice": 1}, {"rid": OTHER}])
def test_output_of_others_is_dropped_and_counted(rig: JournalRig, stale: dict[str, Any]) -> None:
    assert rig.take(item(0, [3], **stale)) is None
    assert rig.journal.stale_items == 1 and not rig.entry.outputs


def test_output_of_an_earlier_attempt_is_dropped(rig: JournalRig) -> None:
    rig.journal.replay(rig.entry, 0.0)
    assert rig.take(item(0, [3])) is None
    assert rig.take(item(0, [3], attempt=1)) is not None


def test_output_after_the_end_is_dropped(rig: JournalRig) -> None:
    rig.journal.remove(RID, 0, 0.0)
    rig.journal.remove(RID, 0, 0.0)
    assert rig.journal.take(item(0, [3]), 0.0) is None
    assert rig.journal.stale_items == 1


def test_ids_past_the_end_are_not_journalled(rig: JournalRig) -> None:
    finish = Finish("stop", "end", 2, Timings())
    given = rig.take(item(0, [3, 5, 6], finish=finish))
    assert given is not None and given.finish == finish
    assert list(rig.entry.outputs) == [3, 5]


def test_an_end_without_output_is_passed_on(rig: JournalRig) -> None:
    rig.take(item(0, [3]))
    given = rig.take(item(1, [], [3], finish=Finish("length", None, 1, Timings())))
    assert given is not None and given.finish is not None and given.ids == b""


def test_a_repeated_end_keeps_its_finish(rig: JournalRig) -> None:
    rig.take(item(0, [3, 5]))
    given = rig.take(item(0, [3, 5], finish=Finish("stop", None, 2, Timings())))
    assert given is not None and given.finish is not None and given.ids == b""


@given(data=st.data(), tokens=st.lists(st.integers(0, 300), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_any_cuts_repeats_and_holes_give_each_token_once(data: st.DataObject, tokens: list[int]) -> None:
    """Slices of the output in any order: what is delivered is always a prefix, and whole once all of it came."""
    rig = JournalRig()
    for _ in range(data.draw(st.integers(0, 12))):
        start = data.draw(st.integers(0, len(tokens) - 1))
        end = data.draw(st.integers(start, len(tokens)))
        try:
            rig.take(item(start, tokens[start:end], tokens[:start]))
        except Gap:
            assert start > len(rig.ids)
    assert rig.ids == tokens[: len(rig.ids)]
    rig.take(item(0, tokens))
    assert (rig.ids, rig.text) == (tokens, "".join(map(text_of, tokens)))
    assert rig.journal.divergences == 0


# Replay


def test_the_next_attempt_carries_what_was_delivered(rig: JournalRig) -> None:
    rig.take(item(0, [3, 5]))
    before = rig.entry.submit
    again = rig.journal.replay(rig.entry, 1.0)
    assert (again.attempt, ids_of(again.output_ids)) == (1, [3, 5])
    assert (again.rid, again.choice, again.prompt_ids, again.params, again.priority) == (
        before.rid, before.choice, before.prompt_ids, before.params, before.priority,
    )  # fmt: skip
    assert rig.entry.submit is again and rig.journal.replays == 1
    assert rig.journal.replay(rig.entry, 2.0).attempt == 2


def test_output_goes_on_at_the_next_index(rig: JournalRig) -> None:
    rig.take(item(0, [3, 5]))
    rig.journal.replay(rig.entry, 1.0)
    rig.take(item(2, [6], [3, 5], attempt=1))
    rig.take(item(0, [3, 5, 6, 7], attempt=1))
    assert rig.ids == [3, 5, 6, 7] and rig.text == "".join(map(text_of, rig.ids))


def test_a_deadline_goes_on_running() -> None:
    rig = JournalRig(deadline_s=10.0)
    assert rig.journal.replay(rig.entry, 4.0).deadline_s == 6.0
    assert rig.journal.replay(rig.entry, 11.0).deadline_s == 0.0


def test_no_deadline_stays_none(rig: JournalRig) -> None:
    assert rig.journal.replay(rig.entry, 4.0).deadline_s is None


def restarted(role: Role, rank: int = 0) -> ProcessStatus:
    return ProcessStatus(role, rank, 1, Epoch(2), "starting", "", 1, LastEnd.KILLED)


def submitted_again(journal: Journal[None], *processes: ProcessStatus) -> list[Submit]:
    again, at_fault = journal.on_deaths(list(processes), 2.0)
    assert not at_fault
    return journal.send(again, 2.0)


def test_all_are_replayed_oldest_first() -> None:
    journal: Journal[None] = Journal()
    keys = [(Rid(bytes([number]) * 16), choice) for number in (9, 2, 5) for choice in (1, 0)]
    for rid, choice in keys:
        journal.add(submit(rid, choice), None, None, 0.0)
    journal.remove(*keys[2], 0.5)
    journal.add(submit(*keys[2]), None, None, 1.0)
    expected = [*keys[:2], *keys[3:], keys[2]]
    assert [(again.rid, again.choice) for again in submitted_again(journal, restarted(Role.SCHEDULER))] == expected
    assert journal.replays == len(keys)


def test_only_the_dead_detokenizers_requests_are_replayed() -> None:
    journal: Journal[None] = Journal()
    journal.add(submit(RID, detok="detok-0"), None, None, 0.0)
    journal.add(submit(OTHER, detok="detok-1"), None, None, 0.0)
    assert [again.rid for again in submitted_again(journal, restarted(Role.DETOK, rank=1))] == [OTHER]
    assert [entry.submit.attempt for entry in journal.entries.values()] == [0, 1]


def test_live_requests_name_current_attempts(rig: JournalRig) -> None:
    rig.journal.replay(rig.entry, 0.0)
    rig.journal.add(submit(OTHER, 1), "client", None, 0.0)
    assert rig.journal.live_requests() == [LiveRequest(RID, 0, 1), LiveRequest(OTHER, 1, 0)]
