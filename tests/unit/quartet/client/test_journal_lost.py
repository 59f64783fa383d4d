"""What the scheduler no longer holds, or holds without moving, is found and submitted again, but not for ever."""

import pytest
from journal_rig import OTHER, RID, JournalRig, held, item, submit

from quartet.client.journal import MAX_STALL_REPLAYS, MISSES_BEFORE_REPLAY, STALL_S
from quartet.wire.frames import HeldRequest


@pytest.fixture
def rig() -> JournalRig:
    return JournalRig()


def lost(rig: JournalRig, now: float, *items: HeldRequest) -> str:
    """Return what is to become of the one request: fine, again or hopeless."""
    again, hopeless = rig.journal.lost(list(items), False, now)
    assert not (again and hopeless) and all(entry is rig.entry for entry in again + hopeless)
    return "again" if again else "hopeless" if hopeless else "fine"


def test_missing_once_may_be_a_race(rig: JournalRig) -> None:
    assert MISSES_BEFORE_REPLAY == 2
    assert [lost(rig, 1.0), lost(rig, 2.0)] == ["fine", "again"]


def test_missing_twice_but_not_in_a_row_is_fine(rig: JournalRig) -> None:
    for now in (1.0, 2.0, 3.0):
        assert lost(rig, now) == "fine"
        assert lost(rig, now, held(rig.entry, steps=int(now))) == "fine"


def test_an_earlier_attempt_held_counts_as_missing(rig: JournalRig) -> None:
    rig.journal.replay(rig.entry, 0.0)
    stale = held(rig.entry, attempt=0)
    assert [lost(rig, 1.0, stale), lost(rig, 2.0, stale)] == ["fine", "again"]


def test_another_choice_held_counts_as_missing(rig: JournalRig) -> None:
    other = HeldRequest(RID, 1, 0, True, 1)
    assert [lost(rig, 1.0, other), lost(rig, 2.0, other)] == ["fine", "again"]


def test_a_request_that_only_the_scheduler_holds_is_ignored(rig: JournalRig) -> None:
    assert lost(rig, 1.0, held(rig.entry), HeldRequest(OTHER, 0, 0, True, 1)) == "fine"


def test_running_without_a_step_or_a_token_is_a_stall(rig: JournalRig) -> None:
    assert lost(rig, 1.0, held(rig.entry, steps=4)) == "fine"
    assert lost(rig, 1.0 + STALL_S, held(rig.entry, steps=4)) == "fine"
    assert lost(rig, 1.1 + STALL_S, held(rig.entry, steps=4)) == "again"


def test_a_step_in_progress_is_no_stall(rig: JournalRig) -> None:
    for second in range(60):
        assert rig.journal.lost([held(rig.entry, steps=4)], True, float(second)) == ([], [])


def test_nothing_is_lost_or_stalls_while_a_process_is_missing(rig: JournalRig) -> None:
    for _ in range(MAX_STALL_REPLAYS):
        lost(rig, 0.0)
        assert lost(rig, 0.0) == "again"
        rig.journal.replay(rig.entry, 0.0)
    rig.journal.pause(50.0)
    assert [lost(rig, 51.0), lost(rig, 52.0)] == ["fine", "again"]


def test_steps_are_progress(rig: JournalRig) -> None:
    for second in range(20):
        assert lost(rig, float(second), held(rig.entry, steps=second)) == "fine"


def test_tokens_are_progress(rig: JournalRig) -> None:
    lost(rig, 0.0, held(rig.entry, steps=1))
    for second in range(1, 20):
        rig.take(item(second - 1, [second], list(range(1, second))), now=float(second))
        assert lost(rig, float(second), held(rig.entry, steps=1)) == "fine"


def test_waiting_is_not_stalling(rig: JournalRig) -> None:
    for second in range(0, 60, 2):
        assert lost(rig, float(second), held(rig.entry, is_running=False)) == "fine"


def test_the_stall_timer_starts_when_waiting_ends(rig: JournalRig) -> None:
    lost(rig, 100.0, held(rig.entry, is_running=False))
    assert lost(rig, 100.0 + STALL_S, held(rig.entry)) == "fine"
    assert lost(rig, 100.1 + STALL_S, held(rig.entry)) == "again"


def test_a_replay_starts_all_counts_again(rig: JournalRig) -> None:
    lost(rig, 1.0)
    rig.journal.replay(rig.entry, 50.0)
    assert lost(rig, 51.0) == "fine"
    assert lost(rig, 50.0 + STALL_S, held(rig.entry)) == "fine"


def test_stalling_again_and_again_is_given_up(rig: JournalRig) -> None:
    verdicts = []
    for _ in range(MAX_STALL_REPLAYS + 1):
        lost(rig, 0.0)
        verdicts.append(lost(rig, 0.0))
        rig.journal.replay(rig.entry, 0.0)
    assert verdicts == ["again"] * 3 + ["hopeless"]


def test_a_request_that_gets_on_between_stalls_is_not_given_up(rig: JournalRig) -> None:
    given: list[int] = []
    for round_ in range(3 * MAX_STALL_REPLAYS):
        lost(rig, 0.0)
        assert lost(rig, 0.0) == "again"
        rig.journal.replay(rig.entry, 0.0)
        rig.take(item(round_, [round_], given, attempt=rig.entry.submit.attempt))
        given.append(round_)


def test_misses_are_counted_for_each_request(rig: JournalRig) -> None:
    rig.journal.add(submit(OTHER), "client", None, 0.0)
    for now in (1.0, 2.0):
        again, hopeless = rig.journal.lost([held(rig.entry, steps=int(now))], False, now)
    assert [entry.submit.rid for entry in again] == [OTHER] and not hopeless
