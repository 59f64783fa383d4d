"""Trials after the deaths of a process: who is sent again, one at a time, and who is at fault."""

import random

import pytest

from quartet.client.trials import MARGIN, Trials
from quartet.wire.frames import LastEnd


class Process:
    """A process that dies of some keys; the keys it holds go on, step by step, when they have been sent to it."""

    def __init__(self, deadly: set[str], together: int = 1, kills: int = 2, how: LastEnd = LastEnd.CRASHED) -> None:
        self.trials: Trials[str] = Trials(together, kills)
        self.deadly, self.how = deadly, how
        self.progress: dict[str, int] = {}
        self.on_board: list[str] = []
        self.at_fault: list[str] = []
        self.deaths = 0

    def begin(self, *keys: str) -> None:
        for key in keys:
            self.progress[key] = 0
            if self.trials.may_start(key):
                self.on_board.append(key)

    def die(self, how: LastEnd | None = None) -> None:
        self.deaths += 1
        again, at_fault = self.trials.on_death(self.progress, how or self.how)
        self.on_board = again
        for key in at_fault:
            self.at_fault.append(key)
            self.end(key)

    def end(self, key: str) -> None:
        del self.progress[key]
        self.on_board = [other for other in self.on_board if other != key] + self.trials.end(key)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.deadly & set(self.on_board):
                self.die()
                continue
            for key in list(self.on_board):
                self.progress[key] += 1
                self.on_board += self.trials.note_progress(key, self.progress[key])


@pytest.mark.parametrize(("how", "most"), [(LastEnd.CRASHED, 3), (LastEnd.KILLED, 5)])
def test_one_of_ten_is_found_and_the_others_go_on(how: LastEnd, most: int) -> None:
    process = Process({"d"}, how=how)
    process.begin(*"abcdefghij")
    process.run(200)
    assert process.at_fault == ["d"] and process.deaths <= most
    assert sorted(process.on_board) == list("abcefghij")
    assert not process.trials.are_open


def test_late_output_of_what_waits_for_its_trial_is_no_progress() -> None:
    """It would be on trial without anything to pass then, and hold up all that are new for ever."""
    process = Process(set(), how=LastEnd.KILLED)
    process.begin("a", "b")
    for _ in range(3):
        process.die()
    assert process.on_board == ["a"]
    assert process.trials.note_progress("b", 100) == []
    process.begin("c")
    process.run(2 * MARGIN)
    assert sorted(process.on_board) == ["a", "b", "c"] and not process.trials.are_open


def test_two_are_both_found() -> None:
    process = Process({"a", "f"})
    process.begin(*"abcdef")
    process.run(200)
    assert sorted(process.at_fault) == ["a", "f"] and process.deaths <= 4
    assert sorted(process.on_board) == list("bcde")


def test_jobs_are_tried_one_at_a_time_after_the_first_death() -> None:
    process = Process({"c"}, together=0)
    process.begin(*"abc")
    process.run(1)
    assert process.on_board == ["a"]
    process.end("a")
    assert process.on_board == ["b"]
    process.end("b")
    process.run(1)
    assert process.at_fault == ["c"] and process.deaths == 2


def test_new_ones_wait_for_the_end_of_the_trials() -> None:
    process = Process({"a"})
    process.begin("a", "b")
    process.run(2)
    process.begin("n")
    assert process.trials.is_held("n") and "n" not in process.on_board
    process.run(20)
    assert process.at_fault == ["a"]
    assert sorted(process.on_board) == ["b", "n"] and not process.trials.is_held("n")


def test_one_that_has_waited_may_end_before_its_turn() -> None:
    process = Process({"a"})
    process.begin("a", "b", "c")
    process.run(2)
    process.end("c")
    process.run(20)
    assert process.at_fault == ["a"] and process.on_board == ["b"]


def test_progress_between_deaths_clears() -> None:
    process = Process(set())
    process.begin("a", "b")
    for _ in range(20):
        process.die(LastEnd.CRASHED)
        process.run(MARGIN)
    assert process.at_fault == [] and sorted(process.on_board) == ["a", "b"]


def test_deaths_before_it_was_ready_say_nothing() -> None:
    process = Process(set())
    process.begin("a", "b")
    for _ in range(20):
        process.die(LastEnd.STARTING)
    assert process.at_fault == [] and process.on_board == ["a", "b"]


def test_kills_from_outside_hit_others_and_are_recognised() -> None:
    for seed in range(50):
        chance = random.Random(seed)
        process = Process(set())
        process.begin(*"abcdefgh")
        for _ in range(12):
            process.die(LastEnd.KILLED)
            process.run(chance.randrange(2, 30))
        process.run(100)
        assert process.at_fault == [], seed
        assert sorted(process.on_board) == list("abcdefgh")
