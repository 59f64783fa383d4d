"""What the scheduler no longer holds, or holds without moving, is found and submitted again, but not for ever."""

import pytest
from journal_rig import OTHER, RID, Edge, held, item, submit

from quartet.client.journal import MAX_STALL_REPLAYS, MISSES_BEFORE_REPLAY, STALL_S
from quartet.wire.frames import HeldRequest


@pytest.fixture
def edge() -> Edge:
    return Edge()


def lost(edge: Edge, now: float, *items: HeldRequest) -> str:
    """Return what is to become of the one request: fine, again or hopeless."""
    again, hopeless = edge.journal.lost(list(items), now)
    assert not (again and hopeless) and all(entry is edge.entry for entry in again + hopeless)
    return "again" if again else "hopeless" if hopeless else "fine"


def test_missing_once_may_be_a_race(edge: Edge) -> None:
    assert MISSES_BEFORE_REPLAY == 2
    assert [lost(edge, 1.0), lost(edge, 2.0)] == ["fine", "again"]


def test_missing_twice_but_not_in_a_row_is_fine(edge: Edge) -> None:
    for now in (1.0, 2.0, 3.0):
        assert lost(edge, now) == "fine"
        assert lost(edge, now, held(edge.entry, steps=int(now))) == "fine"


def test_an_earlier_attempt_held_counts_as_missing(edge: Edge) -> None:
    edge.journal.replay(edge.entry, 0.0)
    stale = held(edge.entry, attempt=0)
    assert [lost(edge, 1.0, stale), lost(edge, 2.0, stale)] == ["fine", "again"]


def test_another_choice_held_counts_as_missing(edge: Edge) -> None:
    other = HeldRequest(RID, 1, 0, True, 1)
    assert [lost(edge, 1.0, other), lost(edge, 2.0, other)] == ["fine", "again"]


def test_what_only_the_scheduler_holds_is_not_ours_to_judge(edge: Edge) -> None:
    assert lost(edge, 1.0, held(edge.entry), HeldRequest(OTHER, 0, 0, True, 1)) == "fine"


def test_running_without_a_step_or_a_token_is_a_stall(edge: Edge) -> None:
    assert lost(edge, 1.0, held(edge.entry, steps=4)) == "fine"
    assert lost(edge, 1.0 + STALL_S, held(edge.entry, steps=4)) == "fine"
    assert lost(edge, 1.1 + STALL_S, held(edge.entry, steps=4)) == "again"


def test_steps_are_progress(edge: Edge) -> None:
    for second in range(20):
        assert lost(edge, float(second), held(edge.entry, steps=second)) == "fine"


def test_tokens_are_progress(edge: Edge) -> None:
    lost(edge, 0.0, held(edge.entry, steps=1))
    for second in range(1, 20):
        edge.take(item(second - 1, [second], list(range(1, second))), now=float(second))
        assert lost(edge, float(second), held(edge.entry, steps=1)) == "fine"


def test_waiting_is_not_stalling(edge: Edge) -> None:
    for second in range(0, 60, 2):
        assert lost(edge, float(second), held(edge.entry, is_running=False)) == "fine"


def test_the_stall_timer_starts_when_waiting_ends(edge: Edge) -> None:
    lost(edge, 100.0, held(edge.entry, is_running=False))
    assert lost(edge, 100.0 + STALL_S, held(edge.entry)) == "fine"
    assert lost(edge, 100.1 + STALL_S, held(edge.entry)) == "again"


def test_a_replay_starts_all_counts_again(edge: Edge) -> None:
    lost(edge, 1.0)
    edge.journal.replay(edge.entry, 50.0)
    assert lost(edge, 51.0) == "fine"
    assert lost(edge, 50.0 + STALL_S, held(edge.entry)) == "fine"


def test_stalling_again_and_again_is_given_up(edge: Edge) -> None:
    verdicts = []
    for _ in range(MAX_STALL_REPLAYS + 1):
        lost(edge, 0.0)
        verdicts.append(lost(edge, 0.0))
        edge.journal.replay(edge.entry, 0.0)
    assert verdicts == ["again"] * 3 + ["hopeless"]


def test_a_request_that_gets_on_between_stalls_is_not_given_up(edge: Edge) -> None:
    given: list[int] = []
    for round_ in range(3 * MAX_STALL_REPLAYS):
        lost(edge, 0.0)
        assert lost(edge, 0.0) == "again"
        edge.journal.replay(edge.entry, 0.0)
        edge.take(item(round_, [round_], given, attempt=edge.entry.submit.attempt))
        given.append(round_)


def test_each_request_is_judged_by_itself(edge: Edge) -> None:
    edge.journal.add(submit(OTHER), "client", None, 0.0)
    for now in (1.0, 2.0):
        again, hopeless = edge.journal.lost([held(edge.entry, steps=int(now))], now)
    assert [entry.submit.rid for entry in again] == [OTHER] and not hopeless
